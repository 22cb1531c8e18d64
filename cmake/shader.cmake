# One module: compiles SHADER with MACROS (comma list) to OUT.spv, makes it smaller, validates it, deflates it
# and writes that to OUT.inc. Run as a script with GLSLANG, SPIRV_OPT, SPIRV_VAL, SHADER, MACROS, INCLUDE
# and OUT set.
string(REPLACE "," ";" macros "${MACROS}")
list(TRANSFORM macros PREPEND "-D")
execute_process(
  COMMAND ${GLSLANG} -V --target-env vulkan1.1 -g0 --quiet -I${INCLUDE} ${macros} -o ${OUT}.spv ${SHADER}
  RESULT_VARIABLE result OUTPUT_VARIABLE messages ERROR_VARIABLE messages)
if(NOT result EQUAL 0 OR messages MATCHES "WARNING")
  file(REMOVE ${OUT}.spv ${OUT}.inc)
  message(FATAL_ERROR "${SHADER} (${MACROS}):\n${messages}")
endif()
# A sixth smaller, and less for drivers to take apart. Nothing that would inline functions, which triples the
# size, or fold floating-point constants.
execute_process(
  COMMAND ${SPIRV_OPT} --eliminate-local-single-block --eliminate-local-single-store --ssa-rewrite
          --eliminate-dead-code-aggressive --local-redundancy-elimination --eliminate-dead-branches
          --merge-blocks --eliminate-dead-code-aggressive --compact-ids ${OUT}.spv -o ${OUT}.spv
  RESULT_VARIABLE result OUTPUT_VARIABLE messages ERROR_VARIABLE messages)
if(NOT result EQUAL 0)
  file(REMOVE ${OUT}.spv ${OUT}.inc)
  message(FATAL_ERROR "${SHADER} (${MACROS}): spirv-opt:\n${messages}")
endif()
# Scalar block layout: kernels that need it say so (GPU_NEED_LANES).
execute_process(COMMAND ${SPIRV_VAL} --target-env vulkan1.1 --scalar-block-layout ${OUT}.spv
                RESULT_VARIABLE result OUTPUT_VARIABLE messages ERROR_VARIABLE messages)
if(NOT result EQUAL 0)
  file(REMOVE ${OUT}.spv ${OUT}.inc)
  message(FATAL_ERROR "${SHADER} (${MACROS}): spirv-val:\n${messages}")
endif()

# Deflated: a third of the size. Of gzip's file the ten bytes of the header, which hold a time, are left out.
file(ARCHIVE_CREATE OUTPUT ${OUT}.gz PATHS ${OUT}.spv FORMAT raw COMPRESSION GZip COMPRESSION_LEVEL 9)
file(READ ${OUT}.gz bytes HEX)
if(NOT bytes MATCHES "^1f8b0800")
  file(REMOVE ${OUT}.spv ${OUT}.inc)
  message(FATAL_ERROR "${OUT}.gz: not the header of gzip that was expected")
endif()
string(SUBSTRING "${bytes}" 20 -1 bytes)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n" bytes "${bytes}")
file(WRITE ${OUT}.inc "${bytes}\n")

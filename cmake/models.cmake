# Q8_0 and Q4_0 of the bundled model, made by the program that was just built.
set(VKMOE_BUNDLED ${PROJECT_SOURCE_DIR}/models/emo-nano.gguf)
set(VKMOE_MADE_MODELS "")
file(GLOB VKMOE_CONVERT_SOURCES CONFIGURE_DEPENDS src/model/quant.c src/model/convert*.c src/model/gguf*.c)
if(EXISTS ${VKMOE_BUNDLED} AND EXISTS ${PROJECT_SOURCE_DIR}/src/cli/convert.c)
  foreach(type q8_0 q4_0)
    set(made ${CMAKE_BINARY_DIR}/models/emo-nano-${type}.gguf)
    # Made again when what decides their bytes changes, not whenever the program does.
    add_custom_command(OUTPUT ${made}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/models
      COMMAND vkmoe_cli convert ${VKMOE_BUNDLED} -o ${made} --type ${type}
      DEPENDS ${VKMOE_BUNDLED} ${VKMOE_CONVERT_SOURCES}
      COMMENT "emo-nano in ${type}" VERBATIM)
    list(APPEND VKMOE_MADE_MODELS ${made})
  endforeach()
endif()
add_custom_target(vkmoe_models ALL DEPENDS ${VKMOE_MADE_MODELS})
add_dependencies(vkmoe_models vkmoe_cli)

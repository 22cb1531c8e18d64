# Q8_0 and Q4_0 of the bundled model, made by the program that was just built.
set(VKMOE_BUNDLED ${PROJECT_SOURCE_DIR}/models/emo-nano.gguf)
set(VKMOE_MADE_MODELS "")
if(EXISTS ${VKMOE_BUNDLED} AND EXISTS ${PROJECT_SOURCE_DIR}/src/cli/convert.c)
  foreach(type q8_0 q4_0)
    set(made ${CMAKE_BINARY_DIR}/models/emo-nano-${type}.gguf)
    # Not made again when only the program changed: that would cost every build; `ninja clean` starts over.
    add_custom_command(OUTPUT ${made}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/models
      COMMAND vkmoe_cli convert ${VKMOE_BUNDLED} -o ${made} --type ${type}
      DEPENDS ${VKMOE_BUNDLED} ${PROJECT_SOURCE_DIR}/src/model/quant.c ${PROJECT_SOURCE_DIR}/src/model/convert.c
      COMMENT "emo-nano in ${type}" VERBATIM)
    list(APPEND VKMOE_MADE_MODELS ${made})
  endforeach()
endif()
add_custom_target(vkmoe_models ALL DEPENDS ${VKMOE_MADE_MODELS})
add_dependencies(vkmoe_models vkmoe_cli)

# The page of `vkmoe experts report`: the program carries the template, style and script of src/cli/report.
foreach(part html css js)
  set(in ${PROJECT_SOURCE_DIR}/src/cli/report/report.${part})
  set(out ${CMAKE_BINARY_DIR}/generated/report_${part}.c)
  add_custom_command(OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DIN=${in} -DOUT=${out} -DNAME=report_${part}
            -P ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    DEPENDS ${in} ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    COMMENT "report.${part}" VERBATIM)
  target_sources(vkmoe_cli PRIVATE ${out})
endforeach()

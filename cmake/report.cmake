# The pages of `vkmoe experts report` and `vkmoe bench compare`: the program carries the templates, styles and
# script of src/cli/report.
foreach(part report.html report.css report.js compare.html compare.css)
  string(REPLACE "." "_" name ${part})
  set(in ${PROJECT_SOURCE_DIR}/src/cli/report/${part})
  set(out ${CMAKE_BINARY_DIR}/generated/${name}.c)
  add_custom_command(OUTPUT ${out}
    COMMAND ${CMAKE_COMMAND} -DIN=${in} -DOUT=${out} -DNAME=${name}
            -P ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    DEPENDS ${in} ${CMAKE_CURRENT_LIST_DIR}/embed.cmake
    COMMENT "${part}" VERBATIM)
  target_sources(vkmoe_cli PRIVATE ${out})
endforeach()

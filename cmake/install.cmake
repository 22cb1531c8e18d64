# cmake --install: program, both libraries, header, models, pkg-config file and CMake package.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/vkmoe)

install(TARGETS vkmoe_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS vkmoe ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/vkmoe.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${VKMOE_MADE_MODELS} DESTINATION ${CMAKE_INSTALL_DATADIR}/vkmoe/models)
if(EXISTS ${VKMOE_BUNDLED})
  install(FILES ${VKMOE_BUNDLED} models/bench.txt models/README.md
          DESTINATION ${CMAKE_INSTALL_DATADIR}/vkmoe/models)
endif()

# Relative, so that `cmake --install --prefix` and a moved tree stay right.
file(RELATIVE_PATH VKMOE_PC_PREFIX /p/${CMAKE_INSTALL_LIBDIR}/pkgconfig /p)
configure_file(cmake/vkmoe.pc.in vkmoe.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/vkmoe.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET vkmoe_shared)
  install(TARGETS vkmoe_shared EXPORT vkmoe LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT vkmoe FILE vkmoeTargets.cmake NAMESPACE vkmoe:: DESTINATION ${package_dir})
  configure_file(cmake/vkmoeConfig.cmake.in vkmoeConfig.cmake @ONLY)
  write_basic_package_version_file(${CMAKE_BINARY_DIR}/vkmoeConfigVersion.cmake
                                   COMPATIBILITY SameMinorVersion)
  install(FILES ${CMAKE_BINARY_DIR}/vkmoeConfig.cmake ${CMAKE_BINARY_DIR}/vkmoeConfigVersion.cmake
          DESTINATION ${package_dir})
endif()

# How each dependency is found. No copies are kept here; see README.md for versions and licences.
find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(CJSON REQUIRED IMPORTED_TARGET libcjson)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(NETTLE REQUIRED IMPORTED_TARGET nettle)
find_path(VOLK_INCLUDE_DIR volk.h REQUIRED)
find_path(VULKAN_HEADERS_DIR vulkan/vulkan_core.h REQUIRED)
find_program(GLSLANG glslangValidator REQUIRED)
find_program(SPIRV_VAL spirv-val REQUIRED)
find_program(SPIRV_OPT spirv-opt REQUIRED)

add_library(vkmoe_deps INTERFACE)
target_include_directories(vkmoe_deps SYSTEM INTERFACE ${VOLK_INCLUDE_DIR} ${VULKAN_HEADERS_DIR})
target_link_libraries(vkmoe_deps INTERFACE PkgConfig::CJSON PkgConfig::PCRE2 PkgConfig::NETTLE
                      Threads::Threads ${CMAKE_DL_LIBS})
if(NOT MSVC)
  target_link_libraries(vkmoe_deps INTERFACE m)
endif()

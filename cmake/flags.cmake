# Compiler and linker options of everything built here, as the interface library vkmoe_flags.
if(NOT MSVC)
  set(CMAKE_C_FLAGS_RELEASE "-O2 -DNDEBUG")
endif()

add_library(vkmoe_flags INTERFACE)
target_include_directories(vkmoe_flags INTERFACE
  ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/shaders)
target_compile_definitions(vkmoe_flags INTERFACE
  _FILE_OFFSET_BITS=64 $<$<NOT:$<BOOL:${WIN32}>>:_POSIX_C_SOURCE=200809L>)

# gcc sees overlaps that are none once sanitizers have added their code: there a warning stays a warning.
set(werror "")
if(VKMOE_WERROR AND NOT VKMOE_SANITIZE)
  set(werror -Werror)
endif()

# -ffp-contract=off: the scalar reference gives the same bits from every compiler.
# Sections and their collection keep the program small: it takes from the static library only what it calls.
set(VKMOE_LINK_OPTIONS "")
if(NOT MSVC)
  target_compile_options(vkmoe_flags INTERFACE
                         -Wall -Wextra -Wshadow -Wundef -Wpointer-arith -Wstrict-prototypes
                         -fvisibility=hidden -ffp-contract=off -ffunction-sections -fdata-sections
                         ${werror})
  if(NOT APPLE)
    list(APPEND VKMOE_LINK_OPTIONS -Wl,--gc-sections -Wl,--as-needed)
  endif()
endif()

if(VKMOE_SANITIZE)
  target_compile_options(vkmoe_flags INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=undefined
                         -fno-omit-frame-pointer)
  list(APPEND VKMOE_LINK_OPTIONS -fsanitize=address,undefined)
endif()
target_link_options(vkmoe_flags INTERFACE ${VKMOE_LINK_OPTIONS})

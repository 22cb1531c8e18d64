# GLSL to SPIR-V to one C file of words. Each shaders/NAME.comp is one module; a first-line comment
# "// variants: name=MACRO[,MACRO] ..." adds modules NAME_<name> compiled with those macros.
set(VKMOE_SHADER_SOURCE ${CMAKE_BINARY_DIR}/shaders/spirv.c)
add_custom_target(vkmoe_shaders)

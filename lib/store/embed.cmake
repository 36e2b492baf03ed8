# lima_embed(SYMBOL OUT_VAR FILE…): the files, named relative to the current
# folder, become part of the program as `const struct embed_file SYMBOL[]` and
# `const size_t SYMBOL_n` (lib/store/embed.h). OUT_VAR gets the C file to compile.
# The assembler copies the bytes, so no program beyond the compiler is needed.
function(lima_embed symbol out_var)
	set(c ${CMAKE_CURRENT_BINARY_DIR}/${symbol}.c)
	set(asm "")
	set(externs "")
	set(rows "")
	set(deps "")
	set(n 0)
	foreach(file ${ARGN})
		set(path ${CMAKE_CURRENT_SOURCE_DIR}/${file})
		list(APPEND deps ${path})
		string(APPEND asm "\t\"${symbol}_${n}: .incbin \\\"${path}\\\"\\n\"\n"
			"\t\"${symbol}_${n}_end: .byte 0\\n\"\n")
		string(APPEND externs "extern const char ${symbol}_${n}[] HIDDEN, ${symbol}_${n}_end[] HIDDEN;\n")
		string(FIND ${file} "/" slash)
		math(EXPR slash "${slash} + 1")
		string(SUBSTRING ${file} ${slash} -1 name)	# without our first folder
		string(APPEND rows "\t{ \"${name}\", ${symbol}_${n}, ${symbol}_${n}_end },\n")
		math(EXPR n "${n} + 1")
	endforeach()
	file(CONFIGURE OUTPUT ${c} @ONLY CONTENT "/* made by lib/store/embed.cmake */
#include \"lib/store/embed.h\"

#define HIDDEN __attribute__((visibility(\"hidden\")))
extern const struct embed_file ${symbol}[];
extern const size_t ${symbol}_n;

__asm__(\".pushsection .rodata\\n\"
${asm}\t\".popsection\\n\");
${externs}
const struct embed_file ${symbol}[] = {
${rows}};
const size_t ${symbol}_n = ${n};
")
	set_source_files_properties(${c} PROPERTIES OBJECT_DEPENDS "${deps}")
	set(${out_var} ${c} PARENT_SCOPE)
endfunction()

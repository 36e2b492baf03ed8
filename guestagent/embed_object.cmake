# cmake -DIN=FILE -DOUT=HEADER -DNAME=SYMBOL -P embed_object.cmake: a file as a C array.
file(READ ${IN} HEX HEX)
string(REGEX REPLACE "(................................)" "\\1\n" HEX "${HEX}")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," HEX "${HEX}")
file(WRITE ${OUT} "_Alignas(16) static const unsigned char ${NAME}[] = {\n${HEX}\n};\n")

/* A strict, bounded JSON reader: enough to trust a document and to read a few of its fields.
 *
 * The text may come from anybody. Nothing here allocates, recurses without bound, or reads past `length`.
 * Source of the grammar: RFC 8259; text that is not UTF-8, or nests deeper than JSON_DEPTH_MAX, is refused. */
#ifndef DUNLIN_JSON_SCAN_H
#define DUNLIN_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#define JSON_DEPTH_MAX 64
#define JSON_KEY_BYTES_MAX 63

enum json_type { JSON_ABSENT, JSON_OBJECT, JSON_ARRAY, JSON_STRING, JSON_NUMBER, JSON_LITERAL };

/* A member of the outermost object that the caller wants; `text` includes a string's quotes. */
struct json_field {
    const char *name;
    enum json_type type;
    const char *text;
    size_t length;
};

/* True when `text` is exactly one valid JSON object; fills the wanted fields (the last of equal names wins). */
bool json_scan_object(const char *text, size_t length, struct json_field *fields, size_t fields_count);

/* Decodes a field that json_scan_object() found to be a string. Returns its bytes in `out` (no NUL is added), or
 * -1 when it is no string, does not fit, or holds a lone surrogate or (unless allow_nul) U+0000. */
long json_decode_string(const struct json_field *field, char *out, size_t out_size, bool allow_nul);

/* True when all bytes are well-formed UTF-8 (RFC 3629: no overlong form, no surrogate). */
bool json_valid_utf8(const char *text, size_t length);

#endif

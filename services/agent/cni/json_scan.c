#include "json_scan.h"

#include <stdint.h>
#include <string.h>

struct cursor {
    const char *at;
    const char *end;
    int depth;
};

static bool scan_value(struct cursor *c, enum json_type *type);

static void skip_space(struct cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
}

static bool take(struct cursor *c, char wanted) {
    if (c->at == c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

static bool is_digit(const struct cursor *c) { return c->at < c->end && *c->at >= '0' && *c->at <= '9'; }

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The four digits after "\u"; -1 when they are not all there. */
static long take_hex4(struct cursor *c) {
    long value = 0;
    if (c->end - c->at < 4) return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_value(*c->at++);
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static bool scan_string(struct cursor *c) {
    if (!take(c, '"')) return false;
    while (c->at < c->end) {
        unsigned char byte = (unsigned char)*c->at++;
        if (byte == '"') return true;
        if (byte < 0x20) return false;
        if (byte != '\\') continue;
        if (c->at == c->end) return false;
        char escape = *c->at++;
        if (escape == 'u') {
            if (take_hex4(c) < 0) return false;
        } else if (escape == '\0' || strchr("\"\\/bfnrt", escape) == NULL) {
            return false;
        }
    }
    return false;
}

static bool scan_digits(struct cursor *c) {
    if (!is_digit(c)) return false;
    while (is_digit(c)) c->at++;
    return true;
}

static bool scan_number(struct cursor *c) {
    (void)take(c, '-');
    if (!take(c, '0') && !scan_digits(c)) return false;
    if (take(c, '.') && !scan_digits(c)) return false;
    if (take(c, 'e') || take(c, 'E')) {
        if (!take(c, '+')) (void)take(c, '-');
        return scan_digits(c);
    }
    return true;
}

static bool scan_literal(struct cursor *c, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0) return false;
    c->at += length;
    return true;
}

static bool scan_array(struct cursor *c) {
    enum json_type ignored;
    if (!take(c, '[')) return false;
    skip_space(c);
    if (take(c, ']')) return true;
    do {
        if (!scan_value(c, &ignored)) return false;
        skip_space(c);
    } while (take(c, ','));
    return take(c, ']');
}

/* Copies a member's value into every wanted field whose name the (decoded) key equals. */
static void note_field(const struct json_field *key, const struct json_field *value, struct json_field *fields,
                       size_t fields_count) {
    char name[JSON_KEY_BYTES_MAX + 1];
    long length = json_decode_string(key, name, sizeof name - 1, false);
    if (length < 0) return;
    name[length] = '\0';
    for (size_t i = 0; i < fields_count; i++) {
        if (strcmp(fields[i].name, name) != 0) continue;
        fields[i].type = value->type;
        fields[i].text = value->text;
        fields[i].length = value->length;
    }
}

static bool scan_member(struct cursor *c, struct json_field *fields, size_t fields_count) {
    struct json_field key = {.type = JSON_STRING}, value = {.type = JSON_ABSENT};
    skip_space(c);
    key.text = c->at;
    if (!scan_string(c)) return false;
    key.length = (size_t)(c->at - key.text);
    skip_space(c);
    if (!take(c, ':')) return false;
    skip_space(c);
    value.text = c->at;
    if (!scan_value(c, &value.type)) return false;
    value.length = (size_t)(c->at - value.text);
    note_field(&key, &value, fields, fields_count);
    return true;
}

static bool scan_object(struct cursor *c, struct json_field *fields, size_t fields_count) {
    if (!take(c, '{')) return false;
    skip_space(c);
    if (take(c, '}')) return true;
    do {
        if (!scan_member(c, fields, fields_count)) return false;
        skip_space(c);
    } while (take(c, ','));
    return take(c, '}');
}

static bool scan_nested(struct cursor *c, enum json_type *type) {
    if (c->depth == JSON_DEPTH_MAX) return false;
    c->depth++;
    *type = *c->at == '{' ? JSON_OBJECT : JSON_ARRAY;
    bool ok = *type == JSON_OBJECT ? scan_object(c, NULL, 0) : scan_array(c);
    c->depth--;
    return ok;
}

static bool scan_value(struct cursor *c, enum json_type *type) {
    skip_space(c);
    if (c->at == c->end) return false;
    switch (*c->at) {
    case '{':
    case '[':
        return scan_nested(c, type);
    case '"':
        *type = JSON_STRING;
        return scan_string(c);
    case 't':
    case 'f':
    case 'n':
        *type = JSON_LITERAL;
        return scan_literal(c, *c->at == 't' ? "true" : *c->at == 'f' ? "false" : "null");
    default:
        *type = JSON_NUMBER;
        return scan_number(c);
    }
}

bool json_scan_object(const char *text, size_t length, struct json_field *fields, size_t fields_count) {
    struct cursor c = {.at = text, .end = text + length, .depth = 1};
    for (size_t i = 0; i < fields_count; i++) fields[i].type = JSON_ABSENT;
    if (!json_valid_utf8(text, length)) return false;
    skip_space(&c);
    if (!scan_object(&c, fields, fields_count)) return false;
    skip_space(&c);
    return c.at == c.end;
}

static size_t encode_utf8(uint32_t point, char *out) {
    if (point < 0x80) {
        out[0] = (char)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (char)(0xC0 | point >> 6);
        out[1] = (char)(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (char)(0xE0 | point >> 12);
        out[1] = (char)(0x80 | (point >> 6 & 0x3F));
        out[2] = (char)(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | point >> 18);
    out[1] = (char)(0x80 | (point >> 12 & 0x3F));
    out[2] = (char)(0x80 | (point >> 6 & 0x3F));
    out[3] = (char)(0x80 | (point & 0x3F));
    return 4;
}

/* The code point of the escape after a backslash, surrogate pairs joined; -1 for a lone surrogate. */
static long take_escape(struct cursor *c) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char escape = *c->at++;
    if (escape != 'u') return meanings[strchr(letters, escape) - letters];
    long high = take_hex4(c);
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || !take(c, '\\') || !take(c, 'u')) return -1;
    long low = take_hex4(c);
    if (low < 0xDC00 || low > 0xDFFF) return -1;
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

long json_decode_string(const struct json_field *field, char *out, size_t out_size, bool allow_nul) {
    size_t used = 0;
    if (field->type != JSON_STRING) return -1;
    struct cursor c = {.at = field->text + 1, .end = field->text + field->length - 1};
    while (c.at < c.end) {
        char bytes[4] = {*c.at++};
        size_t count = 1;
        if (bytes[0] == '\\') {
            long point = take_escape(&c);
            if (point < 0 || (point == 0 && !allow_nul)) return -1;
            count = encode_utf8((uint32_t)point, bytes);
        }
        if (out_size - used < count) return -1;
        memcpy(out + used, bytes, count);
        used += count;
    }
    return (long)used;
}

/* How many bytes follow this lead byte, and the least code point of that length; -1 for no lead byte. */
static int utf8_tail(unsigned char lead, uint32_t *point, uint32_t *least) {
    if (lead < 0x80) return *point = lead, *least = 0, 0;
    if (lead >> 5 == 0x06) return *point = lead & 0x1F, *least = 0x80, 1;
    if (lead >> 4 == 0x0E) return *point = lead & 0x0F, *least = 0x800, 2;
    if (lead >> 3 == 0x1E) return *point = lead & 0x07, *least = 0x10000, 3;
    return -1;
}

bool json_valid_utf8(const char *text, size_t length) {
    for (size_t i = 0; i < length;) {
        uint32_t point, least;
        int tail = utf8_tail((unsigned char)text[i++], &point, &least);
        if (tail < 0 || (size_t)tail > length - i) return false;
        for (; tail > 0; tail--, i++) {
            if (((unsigned char)text[i] & 0xC0) != 0x80) return false;
            point = point << 6 | ((unsigned char)text[i] & 0x3F);
        }
        if (point < least || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) return false;
    }
    return true;
}

/* The CNI executable's reader of its standard input, for libFuzzer: `make fuzz` builds and runs it. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../services/agent/cni/json_scan.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    /* A copy of just this size: the sanitizer sees one octet too far, which a terminating NUL would hide. */
    char *text = malloc(size ? size : 1);
    memcpy(text, data, size);
    struct json_field fields[] = {{.name = "cniVersion"}, {.name = "agentSocket"}, {.name = "name"}};
    char out[108];
    if (json_scan_object(text, size, fields, sizeof fields / sizeof *fields)) {
        if (!json_valid_utf8(text, size))
            abort();
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            long length = json_decode_string(&fields[i], out, sizeof out, i == 0);
            if (length > (long)sizeof out || (length >= 0 && fields[i].type != JSON_STRING))
                abort();
            if (length >= 0 && !json_valid_utf8(out, (size_t)length))
                abort();
        }
    }
    free(text);
    return 0;
}

/* dunlin-cni: the executable that the container runtime starts, and nothing more than a messenger.
 *
 * It carries CNI_* and standard input to Dunlin's agent over a unix socket and prints the agent's answer. It knows of
 * the CNI specification (1.1) only what it must when there is no agent to ask: VERSION and error objects.
 *
 * A message, either way, is a length (4 bytes, network order) and that many bytes of JSON, at most FRAME_BYTES_MAX:
 *   request  {"command","containerID","netns","ifname","args","path","config": the runtime's JSON as it came}
 *   reply    {"exit": 0|1, "stdout": "..."}
 * The configuration is embedded raw, so it is first held to be exactly one JSON object (json_scan.h). */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "json_scan.h"

#define CONFIG_BYTES_MAX (1024 * 1024)
#define FRAME_BYTES_MAX (4 * 1024 * 1024)
#define DEFAULT_SOCKET "/run/dunlin/agent.sock"
#define DEFAULT_TIMEOUT_SECONDS 110 /* less than the 120 s and more of the runtimes, so that they see our words */
#define CNI_VERSION_MAX "1.1.0"
#define VERSION_BYTES_MAX 31

/* CNI specification 1.1, section "Error". */
enum cni_error {
    CNI_INCOMPATIBLE_VERSION = 1,
    CNI_INVALID_ENVIRONMENT = 4,
    CNI_IO_FAILURE = 5,
    CNI_UNDECODABLE = 6,
    CNI_INVALID_CONFIG = 7,
    CNI_TRY_AGAIN_LATER = 11,
};

static const char *const supported_versions[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
#define SUPPORTED_COUNT (sizeof supported_versions / sizeof supported_versions[0])

struct buffer {
    char *bytes;
    size_t used, size;
};

static char reply_version[VERSION_BYTES_MAX + 1] = CNI_VERSION_MAX;
static struct timespec deadline;

static void write_all_or_exit(int fd, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t count = write(fd, bytes, length);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) _exit(CNI_IO_FAILURE); /* nobody reads our standard output: there is no one to tell */
        bytes += count;
        length -= (size_t)count;
    }
}

static void append(struct buffer *b, const char *bytes, size_t length) {
    if (b->bytes == NULL || b->size - b->used < length) {
        b->size = (b->used + length) * 2 + 64;
        b->bytes = realloc(b->bytes, b->size);
        if (b->bytes == NULL) abort();
    }
    memcpy(b->bytes + b->used, bytes, length);
    b->used += length;
}

static void append_text(struct buffer *b, const char *text) { append(b, text, strlen(text)); }

/* `text` must be valid UTF-8. */
static void append_json_string(struct buffer *b, const char *text) {
    append_text(b, "\"");
    for (; *text != '\0'; text++) {
        char escaped[8];
        unsigned char byte = (unsigned char)*text;
        if (byte == '"' || byte == '\\')
            append(b, (char[]){'\\', *text}, 2);
        else if (byte < 0x20)
            append(b, escaped, (size_t)snprintf(escaped, sizeof escaped, "\\u%04x", byte));
        else
            append(b, text, 1);
    }
    append_text(b, "\"");
}

/* Prints the error object of the specification and ends with a status that is not zero. */
__attribute__((noreturn, format(printf, 3, 4))) static void fail(enum cni_error code, const char *message,
                                                                const char *details_format, ...) {
    char details[512], number[16];
    struct buffer out = {0};
    va_list arguments;
    va_start(arguments, details_format);
    vsnprintf(details, sizeof details, details_format, arguments);
    va_end(arguments);
    for (char *at = details; *at != '\0'; at++)
        if ((unsigned char)*at >= 0x7F) *at = '?'; /* bytes of others: the object must stay valid UTF-8 */
    snprintf(number, sizeof number, "%d", code);
    append_text(&out, "{\"cniVersion\":");
    append_json_string(&out, reply_version);
    append_text(&out, ",\"code\":");
    append_text(&out, number);
    append_text(&out, ",\"msg\":");
    append_json_string(&out, message);
    append_text(&out, ",\"details\":");
    append_json_string(&out, details);
    append_text(&out, "}\n");
    write_all_or_exit(STDOUT_FILENO, out.bytes, out.used);
    free(out.bytes);
    exit(1);
}

static void set_deadline(void) {
    const char *text = getenv("DUNLIN_CNI_TIMEOUT_SECONDS");
    long seconds = DEFAULT_TIMEOUT_SECONDS;
    if (text != NULL) {
        char *end;
        seconds = strtol(text, &end, 10);
        if (*text == '\0' || *end != '\0' || seconds < 1 || seconds > 3600)
            fail(CNI_INVALID_ENVIRONMENT, "invalid environment variable",
                 "DUNLIN_CNI_TIMEOUT_SECONDS must be 1 to 3600, not \"%s\"", text);
    }
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += seconds;
}

/* Waits until `fd` can be read (POLLIN) or written (POLLOUT); false when the deadline came first. */
static bool wait_for(int fd, short events) {
    for (;;) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        long left_ms = (deadline.tv_sec - now.tv_sec) * 1000 + (deadline.tv_nsec - now.tv_nsec) / 1000000;
        if (left_ms <= 0) return false;
        struct pollfd item = {.fd = fd, .events = events};
        int ready = poll(&item, 1, (int)left_ms);
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR) fail(CNI_IO_FAILURE, "poll failed", "%s", strerror(errno));
    }
}

static void read_config(struct buffer *config) {
    char chunk[65536];
    for (;;) {
        if (!wait_for(STDIN_FILENO, POLLIN))
            fail(CNI_IO_FAILURE, "standard input was not closed in time", "%zu bytes read", config->used);
        ssize_t count = read(STDIN_FILENO, chunk, sizeof chunk);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(CNI_IO_FAILURE, "cannot read standard input", "%s", strerror(errno));
        if (count == 0) return;
        append(config, chunk, (size_t)count);
        if (config->used > CONFIG_BYTES_MAX)
            fail(CNI_UNDECODABLE, "network configuration is too long", "more than %d bytes", CONFIG_BYTES_MAX);
    }
}

/* Decodes a wanted string of the configuration into out (NUL-terminated); an absent field leaves out as it is. */
static void take_string(const struct json_field *field, char *out, size_t out_size) {
    if (field->type == JSON_ABSENT) return;
    long length = json_decode_string(field, out, out_size - 1, false);
    if (length < 0)
        fail(CNI_INVALID_CONFIG, "invalid network configuration", "\"%s\" must be a string of at most %zu bytes",
             field->name, out_size - 1);
    out[length] = '\0';
}

/* Reads what the configuration says to us: the version, and where the agent listens. */
static void read_fields(const struct buffer *config, char *socket_path, size_t socket_path_size) {
    struct json_field fields[] = {{.name = "cniVersion"}, {.name = "agentSocket"}};
    char version[VERSION_BYTES_MAX + 1] = "";
    if (!json_scan_object(config->bytes, config->used, fields, 2))
        fail(CNI_UNDECODABLE, "cannot decode the network configuration",
             "standard input is not one JSON object (%zu bytes)", config->used);
    take_string(&fields[0], version, sizeof version);
    if (version[0] == '\0')
        fail(CNI_INVALID_CONFIG, "invalid network configuration", "\"cniVersion\" is missing or empty");
    for (size_t i = 0; i < SUPPORTED_COUNT; i++)
        if (strcmp(version, supported_versions[i]) == 0) strcpy(reply_version, version);
    if (strcmp(reply_version, version) != 0)
        fail(CNI_INCOMPATIBLE_VERSION, "incompatible CNI version", "cniVersion \"%s\" is not one of 0.3.0 to %s",
             version, CNI_VERSION_MAX);
    take_string(&fields[1], socket_path, socket_path_size);
    if (socket_path[0] != '/')
        fail(CNI_INVALID_CONFIG, "invalid network configuration", "\"agentSocket\" must be an absolute path");
}

/* VERSION needs no agent. An unknown cniVersion is no error here: the answer is what tells the caller. */
static void answer_version(const struct buffer *config) {
    struct json_field version = {.name = "cniVersion"};
    char asked[VERSION_BYTES_MAX + 1] = CNI_VERSION_MAX;
    struct buffer out = {0};
    if (config->used > 0) {
        if (!json_scan_object(config->bytes, config->used, &version, 1))
            fail(CNI_UNDECODABLE, "cannot decode standard input", "not one JSON object (%zu bytes)", config->used);
        take_string(&version, asked, sizeof asked);
    }
    append_text(&out, "{\"cniVersion\":");
    append_json_string(&out, asked);
    append_text(&out, ",\"supportedVersions\":[");
    for (size_t i = 0; i < SUPPORTED_COUNT; i++) {
        if (i > 0) append_text(&out, ",");
        append_json_string(&out, supported_versions[i]);
    }
    append_text(&out, "]}\n");
    write_all_or_exit(STDOUT_FILENO, out.bytes, out.used);
    free(out.bytes);
}

static const char *environment(const char *name) {
    const char *value = getenv(name);
    if (value == NULL) return "";
    if (!json_valid_utf8(value, strlen(value)))
        fail(CNI_INVALID_ENVIRONMENT, "invalid environment variable", "%s is not UTF-8", name);
    return value;
}

/* What each command cannot do without (specification 1.1, section "CNI operations"). */
static void check_environment(const char *command) {
    static const char *const names[] = {"CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"};
    size_t needed;
    if (command[0] == '\0') fail(CNI_INVALID_ENVIRONMENT, "missing environment variable", "CNI_COMMAND is not set");
    if (strcmp(command, "ADD") == 0 || strcmp(command, "CHECK") == 0)
        needed = 3;
    else if (strcmp(command, "DEL") == 0)
        needed = 2; /* without CNI_NETNS: the namespace may be gone */
    else if (strcmp(command, "GC") == 0 || strcmp(command, "STATUS") == 0 || strcmp(command, "VERSION") == 0)
        needed = 0;
    else
        fail(CNI_INVALID_ENVIRONMENT, "unknown CNI_COMMAND", "\"%s\" is none of ADD DEL CHECK GC STATUS VERSION", command);
    for (size_t i = 0; i < needed; i++)
        if (environment(names[i])[0] == '\0')
            fail(CNI_INVALID_ENVIRONMENT, "missing environment variable", "%s needs %s", command, names[i]);
}

static void build_request(struct buffer *out, const char *command, const struct buffer *config) {
    static const char *const members[][2] = {
        {",\"containerID\":", "CNI_CONTAINERID"}, {",\"netns\":", "CNI_NETNS"}, {",\"ifname\":", "CNI_IFNAME"},
        {",\"args\":", "CNI_ARGS"},               {",\"path\":", "CNI_PATH"},
    };
    append(out, "\0\0\0\0", 4); /* the length, filled in below */
    append_text(out, "{\"command\":");
    append_json_string(out, command);
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        append_text(out, members[i][0]);
        append_json_string(out, environment(members[i][1]));
    }
    append_text(out, ",\"config\":");
    append(out, config->bytes, config->used);
    append_text(out, "}");
    uint32_t length = htonl((uint32_t)(out->used - 4));
    memcpy(out->bytes, &length, 4);
}

static int connect_agent(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path); /* take_string() bounded it by the size of sun_path */
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail(CNI_IO_FAILURE, "cannot open a socket", "%s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail(CNI_TRY_AGAIN_LATER, "Dunlin's agent is not reachable", "%s: %s", path, strerror(errno));
    return fd;
}

static void send_all(int fd, const char *bytes, size_t length) {
    while (length > 0) {
        if (!wait_for(fd, POLLOUT)) fail(CNI_TRY_AGAIN_LATER, "Dunlin's agent did not answer in time", "while sending");
        ssize_t count = send(fd, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (count < 0) fail(CNI_IO_FAILURE, "cannot write to Dunlin's agent", "%s", strerror(errno));
        bytes += count;
        length -= (size_t)count;
    }
}

static void receive_all(int fd, char *bytes, size_t length) {
    while (length > 0) {
        if (!wait_for(fd, POLLIN)) fail(CNI_TRY_AGAIN_LATER, "Dunlin's agent did not answer in time", "while receiving");
        ssize_t count = recv(fd, bytes, length, 0);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail(CNI_IO_FAILURE, "cannot read from Dunlin's agent", "%s", strerror(errno));
        if (count == 0) fail(CNI_TRY_AGAIN_LATER, "Dunlin's agent closed the connection", "%zu bytes short", length);
        bytes += count;
        length -= (size_t)count;
    }
}

/* Prints the reply's "stdout" and returns its "exit". */
static int print_reply(const struct buffer *reply) {
    struct json_field fields[] = {{.name = "exit"}, {.name = "stdout"}};
    bool valid = json_scan_object(reply->bytes, reply->used, fields, 2) && fields[0].type == JSON_NUMBER &&
                 fields[0].length == 1 && (*fields[0].text == '0' || *fields[0].text == '1') &&
                 fields[1].type == JSON_STRING;
    char *text = valid ? malloc(fields[1].length) : NULL;
    long length = valid && text != NULL ? json_decode_string(&fields[1], text, fields[1].length, true) : -1;
    if (length < 0) fail(CNI_IO_FAILURE, "Dunlin's agent gave an invalid reply", "%zu bytes", reply->used);
    write_all_or_exit(STDOUT_FILENO, text, (size_t)length);
    free(text);
    return *fields[0].text - '0';
}

static int ask_agent(const char *socket_path, const struct buffer *request) {
    struct buffer reply = {0};
    uint32_t length;
    int fd = connect_agent(socket_path);
    send_all(fd, request->bytes, request->used);
    receive_all(fd, (char *)&length, sizeof length);
    length = ntohl(length);
    if (length > FRAME_BYTES_MAX) fail(CNI_IO_FAILURE, "Dunlin's agent gave an invalid reply", "%u bytes long", length);
    reply.size = reply.used = length;
    reply.bytes = malloc((size_t)length + 1);
    if (reply.bytes == NULL) abort();
    receive_all(fd, reply.bytes, length);
    close(fd);
    int status = print_reply(&reply);
    free(reply.bytes);
    return status;
}

int main(void) {
    struct buffer config = {0}, request = {0};
    char socket_path[sizeof(((struct sockaddr_un *)0)->sun_path)] = DEFAULT_SOCKET;
    int status = 0;
    signal(SIGPIPE, SIG_IGN);
    set_deadline();
    const char *command = environment("CNI_COMMAND");
    const char *socket_override = environment("DUNLIN_AGENT_SOCKET");
    check_environment(command);
    if (strlen(socket_override) >= sizeof socket_path)
        fail(CNI_INVALID_ENVIRONMENT, "invalid environment variable", "DUNLIN_AGENT_SOCKET is too long for a socket");
    if (socket_override[0] != '\0') strcpy(socket_path, socket_override);
    append(&config, "", 0); /* an empty input is text of no length, not NULL */
    read_config(&config);
    if (strcmp(command, "VERSION") == 0) {
        answer_version(&config);
    } else {
        read_fields(&config, socket_path, sizeof socket_path);
        build_request(&request, command, &config);
        status = ask_agent(socket_path, &request);
    }
    free(request.bytes);
    free(config.bytes);
    return status;
}

/* The only program of the test's image: as `pause` it waits, as `serve` it answers HTTP on 8080. */
#include <arpa/inet.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void stop(int number) {
    (void)number;
    _exit(0);
}

static int serve(void) {
    static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nserved";
    struct sockaddr_in6 everywhere = {.sin6_family = AF_INET6, .sin6_port = htons(8080)};
    char request[4096];
    int link, yes = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&everywhere, sizeof everywhere) || listen(listener, 64))
        return 1;
    while ((link = accept(listener, 0, 0)) >= 0) {
        if (read(link, request, sizeof request) > 0 && write(link, answer, sizeof answer - 1) < 0)
            return 1;
        close(link);
    }
    return 1;
}

int main(int count, char **words) {
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    signal(SIGPIPE, SIG_IGN);
    if (count > 1 && !strcmp(words[1], "serve"))
        return serve();
    for (;;) {
        pause();
        while (waitpid(-1, 0, WNOHANG) > 0)
            ;
    }
}

/* A redis-server of an example's own, for users who have named none: on a unix socket in a
 * temporary directory, so that it meets no other. It keeps nothing, and ends with the example. */
#ifndef OWN_SERVER_H
#define OWN_SERVER_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define OWN_SERVER_SOCKET "/server.sock"

enum { OWN_SERVER_START_MS = 10000, OWN_SERVER_LOOK_MS = 10 };
enum {
    OWN_SERVER_SOCKET_MAX = sizeof((struct sockaddr_un *)NULL)->sun_path,
    OWN_SERVER_DIRECTORY_MAX = OWN_SERVER_SOCKET_MAX - sizeof OWN_SERVER_SOCKET
};

/* All zero: there is none. */
struct own_server {
    pid_t pid;                                  /* 0 = none runs         */
    struct sockaddr_un address;
    char directory[OWN_SERVER_DIRECTORY_MAX];   /* "" = there is none    */
    char url[sizeof "unix://" + 3 * OWN_SERVER_SOCKET_MAX];
    char why[256];                              /* where it did not start */
};

/* Makes the directory, and the address and the URL of the socket in it. */
static bool own_server_directory(struct own_server *server, const char *name)
{
    const char *parent = getenv("TMPDIR");
    if (parent == NULL || parent[0] != '/') {
        parent = "/tmp";
    }
    int length =
        snprintf(server->directory, sizeof server->directory, "%s/%s-XXXXXX", parent, name);
    bool fits = (size_t)length < sizeof server->directory;
    if (!fits || mkdtemp(server->directory) == NULL) {
        snprintf(server->why, sizeof server->why, "no temporary directory in %s: %s", parent,
                 fits ? strerror(errno) : "too long for the path of a socket; set TMPDIR");
        server->directory[0] = '\0';
        return false;
    }
    server->address.sun_family = AF_UNIX;
    sprintf(server->address.sun_path, "%s" OWN_SERVER_SOCKET, server->directory);
    char *out = server->url + sprintf(server->url, "unix://");
    for (const char *in = server->address.sun_path; *in != '\0'; in++) {
        bool plain = (*in >= 'a' && *in <= 'z') || (*in >= 'A' && *in <= 'Z') ||
                     (*in >= '0' && *in <= '9') || strchr("/-._", *in) != NULL;
        out += sprintf(out, plain ? "%c" : "%%%02X", (unsigned char)*in);
    }
    return true;
}

/* In the child. A session of its own, because Ctrl-C is for the example, which still has locks to
 * give back; and no longer life than the example's, whatever ends that. */
static void own_server_become(const struct own_server *server, pid_t parent)
{
    static const char *const programs[] = {"redis-server", "valkey-server"};
    sigset_t none;
    sigemptyset(&none);
    setsid();
    prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0UL, 0UL, 0UL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (size_t i = 0; getppid() == parent && i < sizeof programs / sizeof programs[0]; i++) {
        execlp(programs[i], programs[i], "--port", "0", "--unixsocket", server->address.sun_path,
               "--unixsocketperm", "700", "--save", "", "--appendonly", "no", "--dir",
               server->directory, "--logfile", "/dev/null", (char *)NULL);
    }
    _exit(EXIT_FAILURE);
}

/* Does somebody listen at the address yet? */
static bool own_server_listens(const struct own_server *server)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    bool listens = fd >= 0 && connect(fd, (const struct sockaddr *)&server->address,
                                      sizeof server->address) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return listens;
}

/* True: it listens at server->url. False: server->why. To be stopped in either case. */
static bool own_server_start(struct own_server *server, const char *name)
{
    pid_t parent = getpid();
    if (!own_server_directory(server, name)) {
        return false;
    }
    server->pid = fork();
    if (server->pid == 0) {
        own_server_become(server, parent);
    }
    for (int waited = 0; server->pid > 0 && waited < OWN_SERVER_START_MS;
         waited += OWN_SERVER_LOOK_MS) {
        if (own_server_listens(server)) {
            return true;
        }
        if (waitpid(server->pid, NULL, WNOHANG) == server->pid) {
            server->pid = 0;
        }
        struct timespec pause = {0, OWN_SERVER_LOOK_MS * 1000000L};
        nanosleep(&pause, NULL);
    }
    sprintf(server->why, "no redis-server could be started; install it (Debian: apt install "
                         "redis-server), or name a server with --url");
    return false;
}

static void own_server_stop(const struct own_server *server)
{
    if (server->pid > 0) {
        kill(server->pid, SIGKILL);
        waitpid(server->pid, NULL, 0);
    }
    if (server->directory[0] != '\0') {
        unlink(server->address.sun_path);
        rmdir(server->directory);
    }
}

#endif /* OWN_SERVER_H */

// Preloaded into a process under test: every call that reaches for the network is written down and refused.
// A line is appended to the file YONOS_RECORD names: "getaddrinfo HOST", "connect FAMILY" and so on.

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

void record(const char* call, const char* what) {
    const char* path = std::getenv("YONOS_RECORD");
    const int file = path == nullptr ? -1 : open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0) {
        dprintf(file, "%s %s\n", call, what == nullptr ? "" : what);
        close(file);
    }
}

// Sockets within the machine (AF_UNIX, AF_NETLINK) are no network.
const char* family_of(const sockaddr* address) {
    if (address == nullptr) return nullptr;
    return address->sa_family == AF_INET ? "AF_INET" : address->sa_family == AF_INET6 ? "AF_INET6" : nullptr;
}

// The call itself, past this library: only what stays within the machine gets there.
template <class Call>
Call next(Call, const char* name) {
    return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int getaddrinfo(const char* host, const char*, const addrinfo*, addrinfo**) {
    record("getaddrinfo", host);
    return EAI_FAIL;
}

hostent* gethostbyname(const char* host) {
    record("gethostbyname", host);
    return nullptr;
}

int connect(int socket, const sockaddr* address, socklen_t size) {
    if (const char* family = family_of(address)) {
        record("connect", family);
        errno = ENETUNREACH;
        return -1;
    }
    return next(&connect, "connect")(socket, address, size);
}

ssize_t sendto(int socket, const void* data, size_t bytes, int flags, const sockaddr* to, socklen_t size) {
    if (const char* family = family_of(to)) {
        record("sendto", family);
        errno = ENETUNREACH;
        return -1;
    }
    return next(&sendto, "sendto")(socket, data, bytes, flags, to, size);
}

ssize_t sendmsg(int socket, const msghdr* message, int flags) {
    if (const char* family = family_of(static_cast<const sockaddr*>(message->msg_name))) {
        record("sendmsg", family);
        errno = ENETUNREACH;
        return -1;
    }
    return next(&sendmsg, "sendmsg")(socket, message, flags);
}
}

// Preloaded into a process under test: every call that reaches for the network is written down and refused.
// A line is appended to the file YONOS_RECORD names: "getaddrinfo HOST", "connect FAMILY ADDRESS" and so on.
// With YONOS_LOOPBACK in the environment, what stays on this machine's loopback is let through.

#include <arpa/inet.h>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <cstring>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
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
// Returns family and address, or null where there is nothing to refuse.
const char* family_of(const sockaddr* address) {
    thread_local char text[80];
    char number[64] = "";
    if (address == nullptr) return nullptr;
    bool loopback = false;
    if (address->sa_family == AF_INET) {
        const auto& in = reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
        inet_ntop(AF_INET, &in, number, sizeof number);
        loopback = ntohl(in.s_addr) >> 24 == 127;
    } else if (address->sa_family == AF_INET6) {
        const auto& in = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
        inet_ntop(AF_INET6, &in, number, sizeof number);
        loopback = IN6_IS_ADDR_LOOPBACK(&in) || (IN6_IS_ADDR_V4MAPPED(&in) && in.s6_addr[12] == 127);
    } else {
        return nullptr;
    }
    if (loopback && std::getenv("YONOS_LOOPBACK") != nullptr) return nullptr;
    std::snprintf(text, sizeof text, "%s %s", address->sa_family == AF_INET ? "AF_INET" : "AF_INET6", number);
    return text;
}

// A name that needs no resolver: none at all, a number, the machine's own.
bool is_here(const char* host) {
    unsigned char number[16];
    char own[256] = "";
    gethostname(own, sizeof own - 1);
    return host == nullptr || inet_pton(AF_INET, host, number) == 1 || inet_pton(AF_INET6, host, number) == 1 ||
           std::strcmp(host, "localhost") == 0 || std::strcmp(host, own) == 0;
}

// The call itself, past this library: only what stays within the machine gets there.
template <class Call>
Call next(Call, const char* name) {
    return reinterpret_cast<Call>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {

int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found) {
    if (std::getenv("YONOS_LOOPBACK") != nullptr && is_here(host))
        return next(&getaddrinfo, "getaddrinfo")(host, service, hints, found);
    record("getaddrinfo", host);
    return EAI_FAIL;
}

hostent* gethostbyname(const char* host) {
    if (std::getenv("YONOS_LOOPBACK") != nullptr && is_here(host))
        return next(&gethostbyname, "gethostbyname")(host);
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

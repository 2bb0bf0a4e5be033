/* LD_PRELOAD library that records the writes under $DISK_ROOT and makes chosen ones fail.

   Every call that changes a file or a directory there is counted. The calls number `first` to `last` fail with `code`:
   a write has then written half of its bytes, any other call has done nothing. All calls are recorded in $DISK_LOG,
   failed ones too, in the order in which they took place in all processes and threads; so is what is written to
   stdout. From that record disk.py derives what a loss of power leaves at any moment.

   $DISK_LOG begins with four 64-bit numbers: calls so far, first, last, code. Tests may set them at any time. SQLite's
   -shm file is ignored, because it is shared memory. The writes of stdio (faiss, numpy) are recorded, because its
   streams are replaced by streams that call our write; writes through mmap, sendfile or writev are not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct head { uint64_t calls, first, last, code; };
struct record { uint32_t kind, path, data, code; int64_t offset; };
static const char *root;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
__attribute__((constructor)) static void initialize(void) {
    root = getenv("DISK_ROOT");
    const char *path = getenv("DISK_LOG");
    if (root && path)  /* a high descriptor, which is not closed by mistake */
        log_fd = fcntl(syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0), F_DUPFD_CLOEXEC, 900);
}

/* Returns the absolute path if it is under the root and not a -shm file, else NULL. */
static const char *watched_path(const char *path, char *buffer) {
    if (log_fd < 0 || !path) return NULL;
    if (path[0] != '/') {
        char cwd[PATH_MAX];
        if (!getcwd(cwd, sizeof cwd) || snprintf(buffer, PATH_MAX, "%s/%s", cwd, path) >= PATH_MAX) return NULL;
        path = buffer;
    }
    size_t length = strlen(path), root_length = strlen(root);
    int is_under_root = !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
    return is_under_root && (length < 4 || strcmp(path + length - 4, "-shm")) ? path : NULL;
}

/* As watched_path, for an open file. */
static const char *watched_fd(int fd, char *buffer) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = log_fd < 0 ? -1 : readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return watched_path(buffer, buffer);
}

/* Begins a call, and lets no other process or thread begin one until it ends.
   Returns the error that it is to fail with, or 0. */
static int begin_call(int counted) {
    struct head head = {0};
    pthread_mutex_lock(&mutex);
    flock(log_fd, LOCK_EX);
    syscall(SYS_pread64, log_fd, &head, sizeof head, 0L);
    head.calls += counted;
    syscall(SYS_pwrite64, log_fd, &head, sizeof head.calls, 0L);
    return counted && head.first <= head.calls && head.calls <= head.last ? (int)head.code : 0;
}

/* Records a call and ends it. */
static long end_call(char kind, const char *path, int64_t offset, const void *data, size_t size, long result,
                     int code) {
    struct record record = {kind, strlen(path), size, code, offset};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path}, {(void *)data, size}};
    syscall(SYS_lseek, log_fd, 0L, SEEK_END);
    syscall(SYS_writev, log_fd, parts, 3L);
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    if (code) errno = code;
    return result;
}

/* A call that does all or nothing. Kind '-' means that it failed by itself. */
#define ATOMIC_CALL(kind, path, offset, data, call) do { \
        int injected = begin_call(1); \
        long result = injected ? -1 : (call); \
        int code = result < 0 ? (injected ? injected : errno) : 0; \
        const char *text = (data); \
        return end_call(result < 0 && !injected ? '-' : (kind), path, offset, text, strlen(text), result, code); \
    } while (0)

static ssize_t record_write(int fd, const void *bytes, size_t size, int64_t offset) {
    char buffer[PATH_MAX];
    const char *path = watched_fd(fd, buffer);
    int is_stdout = fd == 1 && log_fd >= 0 && !path;
    if (!path && !is_stdout)
        return offset < 0 ? syscall(SYS_write, fd, bytes, size) : syscall(SYS_pwrite64, fd, bytes, size, offset);
    int injected = begin_call(!is_stdout);
    size_t part = injected ? size / 2 : size;
    ssize_t done = offset < 0 ? syscall(SYS_write, fd, bytes, part) : syscall(SYS_pwrite64, fd, bytes, part, offset);
    int code = injected ? injected : done < 0 ? errno : 0;
    if (offset < 0 && !is_stdout) offset = syscall(SYS_lseek, fd, 0L, SEEK_CUR) - (done < 0 ? 0 : done);
    return end_call(is_stdout ? 'P' : 'W', is_stdout ? "" : path, offset, bytes, done < 0 ? 0 : done,
                    injected ? -1 : done, code);
}

ssize_t write(int fd, const void *bytes, size_t size) { return record_write(fd, bytes, size, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) { return record_write(fd, bytes, size, offset); }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off_t offset) { return record_write(fd, bytes, size, offset); }
int ftruncate(int fd, off_t size) {
    char buffer[PATH_MAX];
    const char *path = watched_fd(fd, buffer);
    if (!path) return syscall(SYS_ftruncate, fd, size);
    ATOMIC_CALL('T', path, size, "", syscall(SYS_ftruncate, fd, size));
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
/* Recorded but not done, which is faster: no real loss of power is simulated. */
static int record_sync(int fd, long number) {
    char buffer[PATH_MAX];
    const char *path = watched_fd(fd, buffer);
    if (!path) return syscall(number, fd);
    ATOMIC_CALL('S', path, 0, "", 0);
}
int fsync(int fd) { return record_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return record_sync(fd, SYS_fdatasync); }
/* The second path goes into `data`. Moves into or out of the root are not recorded: the code under test makes none. */
static int record_move(char kind, const char *from, const char *to, long number) {
    char buffers[2][PATH_MAX];
    const char *old = watched_path(from, buffers[0]), *new = watched_path(to, buffers[1]);
    if (!old || !new) return syscall(number, AT_FDCWD, from, AT_FDCWD, to, 0);
    ATOMIC_CALL(kind, old, 0, new, syscall(number, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int rename(const char *from, const char *to) { return record_move('R', from, to, SYS_renameat2); }
int link(const char *from, const char *to) { return record_move('L', from, to, SYS_linkat); }

static int record_unlink(const char *name, int flags) {
    char buffer[PATH_MAX];
    const char *path = watched_path(name, buffer);
    if (!path) return syscall(SYS_unlinkat, AT_FDCWD, name, flags);
    ATOMIC_CALL('U', path, 0, "", syscall(SYS_unlinkat, AT_FDCWD, name, flags));
}
int unlink(const char *path) { return record_unlink(path, 0); }
int rmdir(const char *path) { return record_unlink(path, AT_REMOVEDIR); }
/* shutil.rmtree names files relative to an open directory. */
int unlinkat(int at, const char *name, int flags) {
    char buffer[PATH_MAX], path[PATH_MAX * 2];
    const char *parent = at == AT_FDCWD ? NULL : watched_fd(at, buffer);
    if (!parent) return at == AT_FDCWD ? record_unlink(name, flags) : syscall(SYS_unlinkat, at, name, flags);
    snprintf(path, sizeof path, "%s/%s", parent, name);
    return record_unlink(path, flags);
}
int mkdir(const char *name, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = watched_path(name, buffer);
    if (!path) return syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    ATOMIC_CALL('M', path, 0, "", syscall(SYS_mkdirat, AT_FDCWD, name, mode));
}

/* Opening counts if it creates or truncates a file. */
static int record_open(const char *name, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = flags & (O_CREAT | O_TRUNC) ? watched_path(name, buffer) : NULL;
    int exists = path && !syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
    if (!path || (exists && (flags & O_EXCL || !(flags & O_TRUNC))))
        return syscall(SYS_openat, AT_FDCWD, name, flags, mode);
    ATOMIC_CALL(exists ? 'T' : 'C', path, 0, "", syscall(SYS_openat, AT_FDCWD, name, flags, mode));
}
#define DEFINE_OPEN(function) int function(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); return record_open(path, flags, mode); }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
static ssize_t stream_read(void *fd, char *bytes, size_t size) { return read((int)(intptr_t)fd, bytes, size); }
static ssize_t stream_write(void *fd, const char *bytes, size_t size) {
    ssize_t done = record_write((int)(intptr_t)fd, bytes, size, -1);
    return done < 0 ? 0 : done;  /* fopencookie requires 0 on failure */
}
static int stream_seek(void *fd, off64_t *offset, int whence) {
    return (*offset = lseek((int)(intptr_t)fd, *offset, whence)) < 0 ? -1 : 0;
}
static int stream_close(void *fd) { return close((int)(intptr_t)fd); }

FILE *fdopen(int fd, const char *mode) {
    char buffer[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !watched_fd(fd, buffer))
        return ((FILE * (*)(int, const char *)) dlsym(RTLD_NEXT, "fdopen"))(fd, mode);
    return fopencookie((void *)(intptr_t)fd, mode,
                       (cookie_io_functions_t){stream_read, stream_write, stream_seek, stream_close});
}
FILE *fopen(const char *path, const char *mode) {
    char buffer[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !watched_path(path, buffer))
        return ((FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen"))(path, mode);
    int flags = strchr(mode, '+') ? O_RDWR : O_WRONLY;
    flags |= mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT | O_APPEND : 0;
    int fd = record_open(path, flags, 0666);
    return fd < 0 ? NULL : fdopen(fd, mode);
}
FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

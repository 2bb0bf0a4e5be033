/* A disk that fails, and one that remembers: LD_PRELOAD this to watch what is written under $DISK_FOLDER.

   Every call that changes a file or a folder there is counted. Calls number `first` to `last` fail with `code`: a
   write has then put down half of its bytes, anything else has done nothing. All calls are recorded in $DISK_LOG,
   failed ones too, in the order in which they took place, whatever process or thread they came from; so is what is
   written to stdout. From that record tests/disk_faults.py makes what a loss of power leaves at any moment.

   $DISK_LOG begins with four 64-bit numbers: calls so far, first, last, code; tests set them at any time. SQLite's -shm
   is left alone: it is shared memory. What stdio writes (faiss, numpy) is seen, for its streams are replaced by ones
   that call our write; what is written through mmap, sendfile or writev is not. */
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
static const char *folder;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
__attribute__((constructor)) static void begin(void) {
    folder = getenv("DISK_FOLDER");
    const char *path = getenv("DISK_LOG");
    if (folder && path)  /* a number that no one closes by mistake */
        log_fd = fcntl(syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0), F_DUPFD_CLOEXEC, 900);
}

/* The path as the log calls it: absolute, under the folder, not -shm. NULL: not ours. */
static const char *ours(const char *path, char *buffer) {
    if (log_fd < 0 || !path) return NULL;
    if (path[0] != '/') {
        char here[PATH_MAX];
        if (!getcwd(here, sizeof here) || snprintf(buffer, PATH_MAX, "%s/%s", here, path) >= PATH_MAX) return NULL;
        path = buffer;
    }
    size_t length = strlen(path), root = strlen(folder);
    int under = !strncmp(path, folder, root) && (path[root] == '/' || !path[root]);
    return under && (length < 4 || strcmp(path + length - 4, "-shm")) ? path : NULL;
}

static const char *ours_fd(int fd, char *buffer) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = log_fd < 0 ? -1 : readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return ours(buffer, buffer);
}

/* Begin a call, alone in all processes. Returns the error that it shall end with, or 0. */
static int enter(int counted) {
    struct head head = {0};
    pthread_mutex_lock(&mutex);
    flock(log_fd, LOCK_EX);
    syscall(SYS_pread64, log_fd, &head, sizeof head, 0L);
    head.calls += counted;
    syscall(SYS_pwrite64, log_fd, &head, sizeof head.calls, 0L);
    return counted && head.first <= head.calls && head.calls <= head.last ? (int)head.code : 0;
}

/* End a call and record it. */
static long leave(char kind, const char *path, int64_t offset, const void *data, size_t size, long result, int code) {
    struct record record = {kind, strlen(path), size, code, offset};
    struct iovec parts[] = {{&record, sizeof record}, {(void *)path, record.path}, {(void *)data, size}};
    syscall(SYS_lseek, log_fd, 0L, SEEK_END);
    syscall(SYS_writev, log_fd, parts, 3L);
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    if (code) errno = code;
    return result;
}

/* A call that does all or nothing. Kind '-': it failed by itself. */
#define WHOLE(kind, path, offset, data, call) do { \
        int made = enter(1); \
        long result = made ? -1 : (call); \
        int code = result < 0 ? (made ? made : errno) : 0; \
        const char *more = (data); \
        return leave(result < 0 && !made ? '-' : (kind), path, offset, more, strlen(more), result, code); \
    } while (0)

static ssize_t put(int fd, const void *bytes, size_t size, int64_t offset) {
    char buffer[PATH_MAX];
    const char *path = ours_fd(fd, buffer);
    int said = fd == 1 && log_fd >= 0 && !path;
    if (!path && !said)
        return offset < 0 ? syscall(SYS_write, fd, bytes, size) : syscall(SYS_pwrite64, fd, bytes, size, offset);
    int made = enter(!said);
    size_t some = made ? size / 2 : size;
    ssize_t done = offset < 0 ? syscall(SYS_write, fd, bytes, some) : syscall(SYS_pwrite64, fd, bytes, some, offset);
    int code = made ? made : done < 0 ? errno : 0;
    if (offset < 0 && !said) offset = syscall(SYS_lseek, fd, 0L, SEEK_CUR) - (done < 0 ? 0 : done);
    return leave(said ? 'P' : 'W', said ? "" : path, offset, bytes, done < 0 ? 0 : done, made ? -1 : done, code);
}

ssize_t write(int fd, const void *bytes, size_t size) { return put(fd, bytes, size, -1); }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t offset) { return put(fd, bytes, size, offset); }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off_t offset) { return put(fd, bytes, size, offset); }
int ftruncate(int fd, off_t size) {
    char buffer[PATH_MAX];
    const char *path = ours_fd(fd, buffer);
    if (!path) return syscall(SYS_ftruncate, fd, size);
    WHOLE('T', path, size, "", syscall(SYS_ftruncate, fd, size));
}
int ftruncate64(int fd, off_t size) { return ftruncate(fd, size); }
/* Only said to be done, which is faster: a real loss of power is not played. */
static int settle(int fd, long number) {
    char buffer[PATH_MAX];
    const char *path = ours_fd(fd, buffer);
    if (!path) return syscall(number, fd);
    WHOLE('S', path, 0, "", 0);
}
int fsync(int fd) { return settle(fd, SYS_fsync); }
int fdatasync(int fd) { return settle(fd, SYS_fdatasync); }
/* Two names, the second in `data`. Out of or into the folder is not recorded: nothing of ours moves so. */
static int move(char kind, const char *from, const char *to, long number) {
    char buffers[2][PATH_MAX];
    const char *old = ours(from, buffers[0]), *new = ours(to, buffers[1]);
    if (!old || !new) return syscall(number, AT_FDCWD, from, AT_FDCWD, to, 0);
    WHOLE(kind, old, 0, new, syscall(number, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int rename(const char *from, const char *to) { return move('R', from, to, SYS_renameat2); }
int link(const char *from, const char *to) { return move('L', from, to, SYS_linkat); }

static int drop(const char *name, int flags) {
    char buffer[PATH_MAX];
    const char *path = ours(name, buffer);
    if (!path) return syscall(SYS_unlinkat, AT_FDCWD, name, flags);
    WHOLE('U', path, 0, "", syscall(SYS_unlinkat, AT_FDCWD, name, flags));
}
int unlink(const char *path) { return drop(path, 0); }
int rmdir(const char *path) { return drop(path, AT_REMOVEDIR); }
/* shutil.rmtree names files relative to an open folder. */
int unlinkat(int at, const char *name, int flags) {
    char buffer[PATH_MAX], whole[PATH_MAX * 2];
    const char *parent = at == AT_FDCWD ? NULL : ours_fd(at, buffer);
    if (!parent) return at == AT_FDCWD ? drop(name, flags) : syscall(SYS_unlinkat, at, name, flags);
    snprintf(whole, sizeof whole, "%s/%s", parent, name);
    return drop(whole, flags);
}
int mkdir(const char *name, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = ours(name, buffer);
    if (!path) return syscall(SYS_mkdirat, AT_FDCWD, name, mode);
    WHOLE('M', path, 0, "", syscall(SYS_mkdirat, AT_FDCWD, name, mode));
}

/* Opening counts where it makes or empties a file. */
static int reach(const char *name, int flags, mode_t mode) {
    char buffer[PATH_MAX];
    const char *path = flags & (O_CREAT | O_TRUNC) ? ours(name, buffer) : NULL;
    int there = path && !syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
    if (!path || (there && (flags & O_EXCL || !(flags & O_TRUNC))))
        return syscall(SYS_openat, AT_FDCWD, name, flags, mode);
    WHOLE(there ? 'T' : 'C', path, 0, "", syscall(SYS_openat, AT_FDCWD, name, flags, mode));
}
#define OPENS(function) int function(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); return reach(path, flags, mode); }
OPENS(open)
OPENS(open64)
static ssize_t stream_read(void *fd, char *bytes, size_t size) { return read((int)(intptr_t)fd, bytes, size); }
static ssize_t stream_write(void *fd, const char *bytes, size_t size) {
    ssize_t done = put((int)(intptr_t)fd, bytes, size, -1);
    return done < 0 ? 0 : done;  /* as fopencookie wants it */
}
static int stream_seek(void *fd, off64_t *offset, int whence) {
    return (*offset = lseek((int)(intptr_t)fd, *offset, whence)) < 0 ? -1 : 0;
}
static int stream_close(void *fd) { return close((int)(intptr_t)fd); }

FILE *fdopen(int fd, const char *mode) {
    char buffer[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !ours_fd(fd, buffer))
        return ((FILE * (*)(int, const char *)) dlsym(RTLD_NEXT, "fdopen"))(fd, mode);
    return fopencookie((void *)(intptr_t)fd, mode,
                       (cookie_io_functions_t){stream_read, stream_write, stream_seek, stream_close});
}
FILE *fopen(const char *path, const char *mode) {
    char buffer[PATH_MAX];
    if (!strpbrk(mode, "wa+") || !ours(path, buffer))
        return ((FILE * (*)(const char *, const char *)) dlsym(RTLD_NEXT, "fopen"))(path, mode);
    int flags = strchr(mode, '+') ? O_RDWR : O_WRONLY;
    flags |= mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT | O_APPEND : 0;
    int fd = reach(path, flags, 0666);
    return fd < 0 ? NULL : fdopen(fd, mode);
}
FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

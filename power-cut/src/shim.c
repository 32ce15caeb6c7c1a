// A library that is preloaded into a process (LD_PRELOAD) and writes down each change that it makes below a root, with
// what was there before, so that the test can take back after a kill what no fsync had made durable. In C, because it
// stands in for functions of libc, some of them variadic. Linux, 64 bit; one file system for root and graveyard.
//
// Environment: POWER_CUT_ROOT, the absolute path of what is watched; POWER_CUT_NOTES, a folder for journals and removed
// files; POWER_CUT_DELAY_US, how long a sync takes; POWER_CUT_IGNORE, patterns (separated by ':') of paths whose syncs
// do nothing; POWER_CUT_FAIL, patterns of paths whose next sync fails when the file `fail` is among the notes;
// POWER_CUT_KILL, after how many notes the process is killed.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE = 1, LENGTH, SYNC, SYNC_FAILED, SYNC_ALL, ADD, REMOVE, RENAME, BLIND, INTENT };

// Followed by name, other, fresh and old. A record that ends early was cut off by the kill.
struct record {
    uint32_t magic, kind;
    uint64_t inode, dir, other_dir, replaced;
    uint64_t at, length_before; // WRITE: where; LENGTH: the new length; SYNC: the journal's length when it began
    uint32_t name, other;       // bytes of the two names
    uint64_t fresh, old;        // bytes that follow; the highest bit stands for that many zeros, which do not follow
};
#define MAGIC 0x54554346u
#define ZEROS (1ull << 63)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static uint64_t journal_bytes;
static char root[PATH_MAX], notes[PATH_MAX - 64];
static size_t root_bytes;
static long delay_us, notes_left;

__attribute__((constructor)) static void begin(void) {
    const char *r = getenv("POWER_CUT_ROOT"), *n = getenv("POWER_CUT_NOTES"), *d = getenv("POWER_CUT_DELAY_US");
    if (!r || !n || strlen(r) >= sizeof root || strlen(n) >= sizeof notes) return;
    strcpy(root, r);
    strcpy(notes, n);
    root_bytes = strlen(root);
    delay_us = d ? atol(d) : 0;
    const char *k = getenv("POWER_CUT_KILL");
    notes_left = k ? atol(k) : 0;
    for (int number = 0; journal < 0 && number < 100000; number++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/journal.%05d", notes, number);
        journal = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
    }
}

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t done = syscall(SYS_write, journal, at, length);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) _exit(97); // Without its notes the test would prove nothing.
        at += done, length -= done, journal_bytes += done;
    }
}

static int is_zero(const char *bytes, size_t length) {
    return length == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0);
}

static void note(struct record r, const char *name, const char *other, const void *fresh, const void *old) {
    int saved = errno;
    size_t fresh_bytes = r.fresh, old_bytes = r.old;
    r.magic = MAGIC;
    r.name = name ? strlen(name) : 0;
    r.other = other ? strlen(other) : 0;
    if (fresh_bytes && is_zero(fresh, fresh_bytes)) r.fresh |= ZEROS, fresh_bytes = 0;
    if (old_bytes && is_zero(old, old_bytes)) r.old |= ZEROS, old_bytes = 0;
    put(&r, sizeof r);
    put(name, r.name);
    put(other, r.other);
    put(fresh, fresh_bytes);
    put(old, old_bytes);
    if (notes_left > 0 && --notes_left == 0) kill(getpid(), SIGKILL), pause();
    errno = saved;
}

// Names are noted when they are changed, since only then their inodes are known; should the kill come between the two,
// the notes end with this.
static void intend(void) {
    struct record r = {.kind = INTENT};
    note(r, NULL, NULL, NULL, NULL);
}

static int below_root(const char *path) {
    return strncmp(path, root, root_bytes) == 0 && (path[root_bytes] == '/' || path[root_bytes] == 0);
}

// The path of an open file below the root; 0 if it is none of ours.
static int watched(int fd, char *path, struct stat *found) {
    char link[64];
    if (journal < 0 || fd == journal || fstat(fd, found) != 0) return 0;
    if (!S_ISREG(found->st_mode) && !S_ISDIR(found->st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below_root(path);
}

// Splits a path into its real folder, with inode, and its name; 0 if it is none of ours.
struct place { char path[PATH_MAX]; char name[NAME_MAX + 1]; uint64_t dir; };
static int place(int at, const char *path, struct place *p) {
    char whole[PATH_MAX * 2], link[64], real[PATH_MAX];
    int saved = errno;
    if (journal < 0) return 0;
    if (path[0] == '/') {
        snprintf(whole, sizeof whole, "%s", path);
    } else {
        ssize_t length;
        if (at == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        length = syscall(SYS_readlinkat, AT_FDCWD, link, whole, PATH_MAX - 1);
        if (length <= 0) return errno = saved, 0;
        snprintf(whole + length, sizeof whole - length, "/%s", path);
    }
    size_t length = strlen(whole);
    while (length > 1 && whole[length - 1] == '/') whole[--length] = 0;
    char *slash = strrchr(whole, '/');
    if (!slash || strlen(slash + 1) > NAME_MAX) return errno = saved, 0;
    strcpy(p->name, slash + 1);
    *slash = 0;
    struct stat dir;
    if (!realpath(whole[0] ? whole : "/", real) || !below_root(real) || stat(real, &dir) != 0) return errno = saved, 0;
    p->dir = dir.st_ino;
    errno = saved;
    return snprintf(p->path, sizeof p->path, "%s/%s", real, p->name) < (int)sizeof p->path;
}

// Keeps the content of a file whose name goes, and with it its inode number.
static void bury(const char *path, uint64_t inode) {
    char grave[PATH_MAX];
    int saved = errno;
    snprintf(grave, sizeof grave, "%s/inode.%llu", notes, (unsigned long long)inode);
    if (syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, grave, 0) != 0 && errno != EEXIST) _exit(98);
    errno = saved;
}

static int matches(const char *variable, const char *path) {
    const char *patterns = getenv(variable);
    while (patterns && *patterns) {
        char pattern[PATH_MAX];
        size_t length = strcspn(patterns, ":");
        snprintf(pattern, sizeof pattern, "%.*s", (int)length, patterns);
        if (fnmatch(pattern, path, 0) == 0) return 1;
        patterns += length + (patterns[length] == ':');
    }
    return 0;
}

// Bytes of a file from `at`, as far as there are any; the caller frees them.
static char *content(int fd, uint64_t at, size_t length, uint64_t file_bytes, uint64_t *got) {
    *got = 0;
    if (at >= file_bytes || length == 0) return NULL;
    if (length > file_bytes - at) length = file_bytes - at;
    char path[64], *bytes = malloc(length);
    // The descriptor may be for writing only.
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (!bytes || reader < 0) _exit(99);
    while (*got < length) {
        ssize_t done = syscall(SYS_pread64, reader, bytes + *got, length - *got, at + *got);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) break;
        *got += done;
    }
    syscall(SYS_close, reader);
    return bytes;
}

// ---- data

static ssize_t written(int fd, const void *bytes, size_t length, int64_t at, int call_write) {
    char path[PATH_MAX];
    struct stat found;
    pthread_mutex_lock(&lock);
    if (watched(fd, path, &found) && S_ISREG(found.st_mode)) {
        int saved = errno, flags = fcntl(fd, F_GETFL);
        if (flags & O_APPEND) at = found.st_size;
        else if (at < 0) at = lseek(fd, 0, SEEK_CUR);
        struct record r = {.kind = WRITE, .inode = found.st_ino, .at = at, .length_before = found.st_size, .fresh = length};
        char *old = content(fd, at, length, found.st_size, &r.old);
        note(r, NULL, NULL, bytes, old);
        free(old);
        errno = saved;
        ssize_t done = call_write ? syscall(SYS_write, fd, bytes, length) : syscall(SYS_pwrite64, fd, bytes, length, at);
        if (done < (ssize_t)length) {
            // A full disk, say: what was not written is taken back, so that the notes stay true.
            saved = errno;
            struct stat now;
            fstat(fd, &now);
            struct record undo = {.kind = WRITE, .inode = found.st_ino, .at = at, .length_before = found.st_size, .fresh = 0};
            char *left = content(fd, at, length, now.st_size, &undo.fresh);
            note(undo, NULL, NULL, left, NULL);
            free(left);
            struct record length_now = {.kind = LENGTH, .inode = found.st_ino, .at = now.st_size, .length_before = now.st_size};
            note(length_now, NULL, NULL, NULL, NULL);
            errno = saved;
        }
        if (done > 0 && (flags & O_DSYNC)) {
            struct record sync = {.kind = SYNC, .inode = found.st_ino, .at = journal_bytes};
            note(sync, NULL, NULL, NULL, NULL);
        }
        pthread_mutex_unlock(&lock);
        return done;
    }
    pthread_mutex_unlock(&lock);
    return call_write ? syscall(SYS_write, fd, bytes, length) : syscall(SYS_pwrite64, fd, bytes, length, at);
}

ssize_t write(int fd, const void *bytes, size_t length) { return written(fd, bytes, length, -1, 1); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return written(fd, bytes, length, at, 0); }
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return written(fd, bytes, length, at, 0); }

// Only the first piece: whoever writes several goes on by itself after a short write.
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    char path[PATH_MAX];
    struct stat found;
    if (!watched(fd, path, &found) || !S_ISREG(found.st_mode)) return syscall(SYS_writev, fd, pieces, count);
    for (int i = 0; i < count; i++)
        if (pieces[i].iov_len) return written(fd, pieces[i].iov_base, pieces[i].iov_len, -1, 1);
    return 0;
}
ssize_t pwritev2(int fd, const struct iovec *pieces, int count, off_t at, int flags) {
    char path[PATH_MAX];
    struct stat found;
    if (!watched(fd, path, &found) || !S_ISREG(found.st_mode))
        return syscall(SYS_pwritev2, fd, pieces, count, at, at >> 63, flags);
    if (flags) return errno = EOPNOTSUPP, -1;
    for (int i = 0; i < count; i++)
        if (pieces[i].iov_len) return written(fd, pieces[i].iov_base, pieces[i].iov_len, at, at < 0);
    return 0;
}
ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t at) { return pwritev2(fd, pieces, count, at, 0); }
ssize_t pwritev64(int fd, const struct iovec *pieces, int count, off64_t at) { return pwritev2(fd, pieces, count, at, 0); }
ssize_t pwritev64v2(int fd, const struct iovec *pieces, int count, off64_t at, int flags) {
    return pwritev2(fd, pieces, count, at, flags);
}

static void note_length(int fd, const struct stat *found, uint64_t length) {
    struct record r = {.kind = LENGTH, .inode = found->st_ino, .at = length, .length_before = found->st_size};
    uint64_t cut = (uint64_t)found->st_size > length ? found->st_size - length : 0;
    char *old = content(fd, length, cut, found->st_size, &r.old);
    note(r, NULL, NULL, NULL, old);
    free(old);
}

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    struct stat found;
    pthread_mutex_lock(&lock);
    if (watched(fd, path, &found) && S_ISREG(found.st_mode)) note_length(fd, &found, length);
    int done = syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&lock);
    return done;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    char path[PATH_MAX];
    struct stat found;
    pthread_mutex_lock(&lock);
    if (watched(fd, path, &found)) {
        if (mode & ~FALLOC_FL_KEEP_SIZE) {
            struct record r = {.kind = BLIND};
            note(r, "fallocate with a mode that changes content", path, NULL, NULL);
        } else if (!(mode & FALLOC_FL_KEEP_SIZE) && at + length > found.st_size) {
            note_length(fd, &found, at + length);
        }
    }
    int done = syscall(SYS_fallocate, fd, mode, at, length);
    pthread_mutex_unlock(&lock);
    return done;
}
int fallocate(int fd, int mode, off_t at, off_t length) { return fallocate64(fd, mode, at, length); }
int posix_fallocate64(int fd, off64_t at, off64_t length) { return fallocate64(fd, 0, at, length) ? errno : 0; }
int posix_fallocate(int fd, off_t at, off_t length) { return posix_fallocate64(fd, at, length); }

// Callers fall back to reading and writing.
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    char path[PATH_MAX];
    struct stat found;
    if (watched(out, path, &found)) return errno = EXDEV, -1;
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t length) {
    char path[PATH_MAX];
    struct stat found;
    if (watched(out, path, &found) && S_ISREG(found.st_mode)) return errno = EINVAL, -1;
    return syscall(SYS_sendfile, out, in, from, length);
}
ssize_t sendfile(int out, int in, off_t *from, size_t length) { return sendfile64(out, in, from, length); }

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t at) {
    char path[PATH_MAX];
    struct stat found;
    if ((flags & MAP_SHARED) && (protection & PROT_WRITE) && fd >= 0 && watched(fd, path, &found)) {
        struct record r = {.kind = BLIND};
        pthread_mutex_lock(&lock);
        note(r, "a shared mapping that can be written to", path, NULL, NULL);
        pthread_mutex_unlock(&lock);
    }
    return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, at);
}
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t at) {
    return mmap64(address, length, protection, flags, fd, at);
}

// ---- syncs

// The inode whose sync has failed, and the descriptors that have heard of it: Linux tells each open file once.
static ino_t failed;
static unsigned char heard[4096];

static int synced(int fd, long call) {
    char path[PATH_MAX], trigger[PATH_MAX];
    struct stat found;
    if (!watched(fd, path, &found)) return syscall(call, fd);
    pthread_mutex_lock(&lock);
    uint64_t begun = journal_bytes;
    pthread_mutex_unlock(&lock);
    if (delay_us > 0) usleep(delay_us);
    if (matches("POWER_CUT_IGNORE", path)) return 0;
    struct record r = {.kind = SYNC, .inode = found.st_ino, .at = begun};
    snprintf(trigger, sizeof trigger, "%s/fail", notes);
    pthread_mutex_lock(&lock);
    if (matches("POWER_CUT_FAIL", path) && syscall(SYS_unlinkat, AT_FDCWD, trigger, 0) == 0) {
        failed = found.st_ino;
        memset(heard, 0, sizeof heard);
    }
    if (failed == found.st_ino && fd < (int)sizeof heard && !heard[fd]) {
        heard[fd] = 1;
        r.kind = SYNC_FAILED;
    }
    note(r, path, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return r.kind == SYNC ? 0 : (errno = EIO, -1);
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
int syncfs(int fd) {
    struct record r = {.kind = SYNC_ALL};
    pthread_mutex_lock(&lock);
    if (journal >= 0) note(r, NULL, NULL, NULL, NULL);
    pthread_mutex_unlock(&lock);
    return syscall(SYS_syncfs, fd);
}
void sync(void) { syncfs(0); }
// Neither empties the disk's own cache nor writes metadata: it makes nothing durable.
int sync_file_range(int fd, off64_t at, off64_t length, unsigned flags) {
    (void)fd, (void)at, (void)length, (void)flags;
    return 0;
}

// ---- names

static int opened(int at, const char *path, int flags, mode_t mode) {
    struct place p;
    struct stat found;
    if (!(flags & (O_CREAT | O_TRUNC)) || (flags & O_TMPFILE) == O_TMPFILE || !place(at, path, &p))
        return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    int there = lstat(p.path, &found) == 0;
    if (there && (flags & O_TRUNC) && S_ISREG(found.st_mode) && found.st_size > 0) {
        int reader = syscall(SYS_openat, AT_FDCWD, p.path, O_RDONLY | O_CLOEXEC, 0);
        if (reader >= 0) {
            note_length(reader, &found, 0);
            syscall(SYS_close, reader);
        }
    }
    if (!there) intend();
    int fd = syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && !there && fstat(fd, &found) == 0) {
        struct record r = {.kind = ADD, .inode = found.st_ino, .dir = p.dir};
        note(r, p.name, NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}
#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
int open(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE_OF(flags) return opened(at, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

int mkdirat(int at, const char *path, mode_t mode) {
    struct place p;
    if (!place(at, path, &p)) return syscall(SYS_mkdirat, at, path, mode);
    pthread_mutex_lock(&lock);
    intend();
    int done = syscall(SYS_mkdirat, at, path, mode);
    struct stat found;
    if (done == 0 && lstat(p.path, &found) == 0) {
        struct record r = {.kind = ADD, .inode = found.st_ino, .dir = p.dir, .at = 1};
        note(r, p.name, NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

// An empty folder is put away instead of removed, so that its inode number is not given to another.
static int remove_folder(const char *path, uint64_t inode) {
    char grave[PATH_MAX];
    DIR *dir = opendir(path);
    if (!dir) return -1;
    int entries = 0;
    while (readdir(dir)) entries++;
    closedir(dir);
    if (entries > 2) return errno = ENOTEMPTY, -1;
    snprintf(grave, sizeof grave, "%s/folder.%llu", notes, (unsigned long long)inode);
    return syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, grave, 0);
}

int unlinkat(int at, const char *path, int flags) {
    struct place p;
    struct stat found;
    if (!place(at, path, &p)) return syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&lock);
    int done, there = lstat(p.path, &found) == 0, folder = there && S_ISDIR(found.st_mode);
    intend();
    if (there && folder && (flags & AT_REMOVEDIR)) {
        done = remove_folder(p.path, found.st_ino);
    } else {
        if (there && !folder && !(flags & AT_REMOVEDIR)) bury(p.path, found.st_ino);
        done = syscall(SYS_unlinkat, at, path, flags);
    }
    if (done == 0 && there) {
        struct record r = {.kind = REMOVE, .inode = found.st_ino, .dir = p.dir, .at = folder};
        note(r, p.name, NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int remove(const char *path) {
    int done = unlinkat(AT_FDCWD, path, 0);
    return done != 0 && errno == EISDIR ? rmdir(path) : done;
}

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    struct place a, b;
    int ours = place(from_at, from, &a), theirs = place(to_at, to, &b);
    if (!ours && !theirs) return syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    struct record r = {.kind = RENAME};
    struct stat moved, replaced;
    int there = ours && lstat(a.path, &moved) == 0;
    intend();
    if (!ours || !theirs || flags) {
        r.kind = BLIND;
        note(r, "a rename across the root, or with flags", to, NULL, NULL);
    } else if (there && lstat(b.path, &replaced) == 0 && replaced.st_ino != moved.st_ino) {
        r.replaced = replaced.st_ino;
        // A folder in the way must be empty, and would lose its number.
        if (S_ISDIR(replaced.st_mode)) remove_folder(b.path, replaced.st_ino);
        else bury(b.path, replaced.st_ino);
    }
    int done = syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (done == 0 && there && r.kind == RENAME) {
        r.inode = moved.st_ino, r.dir = a.dir, r.other_dir = b.dir, r.at = S_ISDIR(moved.st_mode);
        note(r, a.name, b.name, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int renameat(int from_at, const char *from, int to_at, const char *to) { return renameat2(from_at, from, to_at, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    struct place p;
    struct stat found;
    if (!place(to_at, to, &p)) return syscall(SYS_linkat, from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    intend();
    int done = syscall(SYS_linkat, from_at, from, to_at, to, flags);
    if (done == 0 && lstat(p.path, &found) == 0) {
        struct record r = {.kind = ADD, .inode = found.st_ino, .dir = p.dir};
        note(r, p.name, NULL, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return done;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

// Files with secrets, line by line.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "program.h"

enum { PROG_FILE_SIZE_MAX = 1 << 20 };  // ten thousand tokens; protects against a wrong path

void prog_wipe(void *data, size_t size)
{
    volatile unsigned char *at = data;
    while (size-- > 0) *at++ = 0;
}

void prog_file_close(prog_file *f)
{
    if (f->text) prog_wipe(f->text, f->size);
    free(f->text);
    memset(f, 0, sizeof *f);
}

int prog_file_open(prog_file *f, const char *path, revdial_err *err)
{
    static const char mark[] = "\xEF\xBB\xBF";  // of UTF-8, as some editors write it
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);  // so that a FIFO cannot hang us
    struct stat kind = {.st_mode = S_IFREG};
    ssize_t n = -1;
    memset(f, 0, sizeof *f);
    if (fd >= 0) f->at = f->text = calloc(1, PROG_FILE_SIZE_MAX + 1);
    if (f->text && fstat(fd, &kind) == 0) n = read(fd, f->text, PROG_FILE_SIZE_MAX);
    if (n >= 0) f->size = (size_t)n;
    if (n >= 0 && strncmp(f->text, mark, 3) == 0) f->at += 3;
    err->msg[0] = '\0';
    if (!S_ISREG(kind.st_mode))
        snprintf(err->msg, sizeof err->msg, "%s: not a regular file", path);
    else if (n < 0)
        snprintf(err->msg, sizeof err->msg, "%s: %s", path, strerror(errno));
    else if (n == PROG_FILE_SIZE_MAX)
        snprintf(err->msg, sizeof err->msg, "%s: over 1 MiB, the wrong file?", path);
    else if (strlen(f->text) != f->size)
        snprintf(err->msg, sizeof err->msg, "%s: has a NUL byte, the wrong file?", path);
    if (fd >= 0) close(fd);
    return err->msg[0] ? -1 : 0;
}

char *prog_file_next(prog_file *f)
{
    while (*f->at) {
        char *line = f->at, *end = line + strcspn(line, "\n");
        f->at = *end ? end + 1 : end;
        f->line++;
        *end = '\0';
        while (end > line && strchr(" \t\r", end[-1])) *--end = '\0';
        line += strspn(line, " \t");
        if (*line && *line != '#') return line;
    }
    return NULL;
}

void prog_warn_readable(prog_log *log, const char *path)
{
    struct stat st;
    if (!path || stat(path, &st) != 0 || !S_ISREG(st.st_mode) || !(st.st_mode & S_IROTH)) return;
    prog_logf(log, REVDIAL_LOG_WARN, "secret.readable",
              "%s holds secrets, and every user of this machine can read it: chmod 600", path);
}

import ctypes, errno, os, socket, stat, struct, subprocess, sys, time

LIBC = ctypes.CDLL(None, use_errno=True)


def name(number):
    return errno.errorcode.get(number, str(number))


def call(number, *arguments):
    """A system call by its number: what it returned, or its error's name."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    return result if result != -1 else name(ctypes.get_errno())


def tried(function, *arguments, **named):
    """What a function returned, or its error's name; "ok" for nothing."""
    try:
        result = function(*arguments, **named)
        return "ok" if result is None else result
    except OSError as error:
        return name(error.errno)


def content(path):
    """The first kilobyte of a file, or its error's name."""
    def read():
        with open(path, "rb") as file:
            return file.read(1024)
    return tried(read)


def written(path, text):
    def write():
        with open(path, "r+b", buffering=0) as file:
            file.write(text)
    return tried(write)


def same(values):
    """All the different values, in order: one word if all agree."""
    return " ".join(dict.fromkeys(str(value) for value in values))


def in_child(function):
    """Runs a function in a child and says how the child ended."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)

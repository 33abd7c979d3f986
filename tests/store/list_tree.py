"""Every file below a folder, a line of JSON each, with all that an image says of it."""
import hashlib
import json
import os
import stat
import sys

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char", stat.S_IFBLK: "block", stat.S_IFSOCK: "socket",
}


def describe(path, name):
    found = os.lstat(path)
    kind = KINDS[stat.S_IFMT(found.st_mode)]
    entry = {
        "path": name.decode("utf-8", "backslashreplace"), "kind": kind, "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid, "gid": found.st_gid, "mtime": int(found.st_mtime),
    }
    if kind == "file":
        entry.update(size=found.st_size, names=found.st_nlink, inode=found.st_ino)
        with open(path, "rb") as file:
            entry["content"] = hashlib.file_digest(file, "sha256").hexdigest()
    if kind == "link":
        entry["target"] = os.readlink(path).decode("utf-8", "backslashreplace")
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    entry["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex()
                       for name in sorted(names) if not name.startswith("user.overlay.")}
    return entry


def walk(top):
    root = os.fsencode(top)
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            print(json.dumps(describe(path, os.path.relpath(path, root))))


walk(sys.argv[1])

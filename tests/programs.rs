//! Real programs in the profile `strict`, with limits that are large enough for them. What is known not to
//! work, and why, is in `docs/COMPATIBILITY.md`; the last test holds that list to the truth.

use support::{Daemon, Registry, Value, json};

struct Toolbox {
    daemon: Daemon,
    image: String,
}

impl Toolbox {
    fn new() -> Self {
        let registry = Registry::with_toolbox();
        let image = registry.image("toolbox:1");
        let daemon = Daemon::builder().registry(&registry).flag("--slots", 2).start();
        let pull = daemon.request("POST", "/images").json(&json!({ "image": image }));
        pull.patience(std::time::Duration::from_secs(300)).send().expect(200);
        Self { daemon, image }
    }

    fn run(&self, user: &str, script: &str, files: &[(&str, &str)]) -> Value {
        let files: Vec<Value> =
            files.iter().map(|(path, text)| json!({ "path": path, "text": text, "mode": "0644" })).collect();
        let request = json!({
            "image": self.image, "cmd": "bash", "args": ["-c", script], "files": files, "workdir": "/work", "user": user,
            "env": { "HOME": "/tmp", "GOCACHE": "/tmp/go", "GOFLAGS": "-mod=mod" },
            "limits": {
                "wall_time_ms": 300_000, "cpu_time_ms": 300_000, "memory_bytes": 2_u64 << 30, "processes": 512, "cpus": 2.0,
                "disk_bytes": 1_u64 << 30, "file_size_bytes": 1_u64 << 30, "inodes": 100_000, "open_files": 4096,
            },
        });
        let asked = self.daemon.request("POST", "/runs").json(&request);
        asked.patience(std::time::Duration::from_secs(320)).send().expect(200)
    }

    /// What a script of bash says that ends well.
    #[track_caller]
    fn said(&self, script: &str, files: &[(&str, &str)]) -> String {
        self.said_by("0", script, files)
    }

    #[track_caller]
    fn said_by(&self, user: &str, script: &str, files: &[(&str, &str)]) -> String {
        let run = self.run(user, &format!("set -euo pipefail\n{script}"), files);
        let (stdout, stderr) = (run["stdout"].as_str().expect("text"), run["stderr"].as_str().expect("text"));
        assert!(
            run["outcome"] == "exited" && run["exit_code"] == 0,
            "{}: {stdout}\n{stderr}\n{:#}",
            run["message"],
            run["usage"]
        );
        stdout.trim().to_owned()
    }
}

const PYTHON: &str = r#"
import asyncio, concurrent.futures, http.server, json, multiprocessing, os, sqlite3, ssl, subprocess, sys, tempfile, threading, urllib.request, zlib
import numpy

def square(n): return n * n

async def children():
    made = [await asyncio.create_subprocess_exec("echo", str(n), stdout=asyncio.subprocess.PIPE) for n in range(3)]
    return [(await child.communicate())[0].strip().decode() for child in made]

if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool:
        print(sum(pool.map(square, range(100))))
    queue = multiprocessing.Queue()
    multiprocessing.Process(target=queue.put, args=("queued",)).start()
    print(queue.get(timeout=20))
    shared = multiprocessing.Value("i", 0)
    def add():
        for _ in range(1000):
            with shared.get_lock(): shared.value += 1
    workers = [multiprocessing.Process(target=add) for _ in range(4)]
    [w.start() for w in workers]; [w.join() for w in workers]
    print(shared.value)
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        print(sum(threads.map(square, range(100))))
    print(asyncio.run(children()))
    matrix = numpy.arange(250_000, dtype=float).reshape(500, 500)
    print(int((matrix @ matrix).trace()) > 0, numpy.linalg.matrix_rank(numpy.eye(50)))
    database = sqlite3.connect("/tmp/data.sqlite")
    database.execute("pragma journal_mode=wal"); database.execute("create table t(x)"); database.execute("insert into t values (42)")
    database.commit()
    print(database.execute("select x from t").fetchone())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/").status, ssl.OPENSSL_VERSION.split()[0])
    print(subprocess.run("seq 3 | tac | tr '\\n' ' '", shell=True, capture_output=True, text=True).stdout, os.cpu_count() > 0)
    with tempfile.TemporaryDirectory() as folder:
        import shutil
        shutil.copytree("/usr/lib/python3/dist-packages/numpy/core", folder + "/copy")
        print(len(os.listdir(folder + "/copy")) > 10)
"#;

const NODE: &str = r#"
const fs = require("fs"), os = require("os"), http = require("http"), crypto = require("crypto");
const { Worker, isMainThread, parentPort } = require("worker_threads");
const { execSync, fork } = require("child_process");
if (!isMainThread) { parentPort.postMessage(crypto.createHash("sha256").update("x").digest("hex").slice(0, 8)); }
else {
  fs.writeFileSync("/tmp/a", "text"); fs.copyFileSync("/tmp/a", "/tmp/b"); fs.copyFileSync("/usr/bin/env", "/tmp/env");
  console.log(fs.readFileSync("/tmp/b", "utf8"), fs.statSync("/tmp/env").size > 1000, Array.isArray(os.cpus()));
  console.log(execSync("echo from a child").toString().trim());
  const worker = new Worker(__filename);
  worker.on("message", (hash) => {
    console.log(hash);
    const server = http.createServer((_, response) => response.end("served")).listen(0, "127.0.0.1", () =>
      http.get({ port: server.address().port, host: "127.0.0.1" }, (response) =>
        response.on("data", (data) => { console.log(data.toString()); server.close(); })));
  });
}
"#;

const JAVA: &str = r#"
import java.util.concurrent.*; import java.util.stream.*; import java.nio.file.*; import java.net.*;
public class Main {
  public static void main(String[] args) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(8);
    System.out.println(pool.submit(() -> IntStream.range(0, 1000).parallel().sum()).get());
    pool.shutdown();
    Files.writeString(Path.of("/tmp/java"), "text"); Files.copy(Path.of("/tmp/java"), Path.of("/tmp/java2"));
    System.out.println(Files.readString(Path.of("/tmp/java2")));
    Process child = new ProcessBuilder("echo", "from a child").start();
    System.out.println(new String(child.getInputStream().readAllBytes()).trim() + " " + child.waitFor());
    try (ServerSocket server = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      Thread client = new Thread(() -> { try (Socket s = new Socket(server.getInetAddress(), server.getLocalPort())) { s.getOutputStream().write(7); } catch (Exception e) { throw new RuntimeException(e); } });
      client.start();
      try (Socket s = server.accept()) { System.out.println(s.getInputStream().read()); }
    }
    byte[][] held = new byte[64][]; for (int i = 0; i < 1000; i++) held[i % 64] = new byte[1 << 20]; System.gc();
    System.out.println(held.length);
  }
}
"#;

const GO: &str = r#"
package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"sync"
)

func main() {
	var wait sync.WaitGroup
	var lock sync.Mutex
	sum := 0
	for n := 0; n < 1000; n++ {
		wait.Add(1)
		go func(n int) { defer wait.Done(); lock.Lock(); sum += n; lock.Unlock() }(n)
	}
	wait.Wait()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }))
	response, err := http.Get(server.URL)
	if err != nil { panic(err) }
	body, _ := io.ReadAll(response.Body)
	out, err := exec.Command("echo", "from a child").Output()
	fmt.Println(sum, string(body), string(out), err)
}
"#;

const CPP: &str = r#"
#include <atomic>
#include <filesystem>
#include <iostream>
#include <regex>
#include <thread>
#include <vector>
int main() {
  std::atomic<int> sum{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; i++) threads.emplace_back([&, i] { sum += i; });
  for (auto &thread : threads) thread.join();
  std::filesystem::copy("/usr/include/stdio.h", "/tmp/stdio.h");
  try { throw 1; } catch (int caught) { sum += caught; }
  std::cout << sum << " " << std::regex_match("sandbox", std::regex("s.*x")) << std::endl;
}
"#;

#[test]
fn interpreters_and_what_they_are_loved_for() {
    let toolbox = Toolbox::new();
    assert_eq!(
        toolbox.said("python3 main.py", &[("main.py", PYTHON)]),
        "328350\nqueued\n4000\n328350\n['0', '1', '2']\nTrue 50\n(42,)\n200 OpenSSL\n3 2 1  True\nTrue"
    );
    assert_eq!(
        toolbox.said("node main.js", &[("main.js", NODE)]),
        "text true true\nfrom a child\n2d711642\nserved"
    );
    assert_eq!(
        toolbox.said("java -Xmx256m Main.java", &[("Main.java", JAVA)]),
        "499500\ntext\nfrom a child 0\n7\n64"
    );
    assert_eq!(
        toolbox.said(
            "perl -e 'print join q( ), sort { $a <=> $b } 3, 1, 2; open F, q(-|), q(echo) or die; print <F>'",
            &[]
        ),
        "1 2 3"
    );
}

#[test]
fn compilers_and_what_they_make() {
    let toolbox = Toolbox::new();
    let makefile = "all: main\nmain: main.o lib.a\n\tg++ -pthread -o $@ main.o lib.a\n%.o: %.cc\n\tg++ -O2 -c -o $@ $<\nlib.a: lib.o\n\tar rcs $@ $<\n";
    let files = [("Makefile", makefile), ("main.cc", CPP), ("lib.cc", "int lib() { return 1; }")];
    assert_eq!(toolbox.said("make -s -j4 && ./main", &files), "29 1");
    let c = "#include <stdio.h>\nint main(void) { puts(\"compiled\"); return 0; }\n";
    assert_eq!(toolbox.said("gcc -O2 -static -o a main.c && ./a", &[("main.c", c)]), "compiled");
    assert_eq!(
        toolbox.said("go build -o main main.go && ./main", &[("main.go", GO)]),
        "499500 served from a child\n <nil>"
    );
    // A program of Rust's, with its threads.
    assert_eq!(toolbox.said("rg --threads 4 --count-matches root /etc/passwd && rg --files /usr/include/linux | wc -l | grep -c '[0-9][0-9]'", &[]), "3\n1");
}

#[test]
fn a_database_a_history_and_a_shell() {
    let toolbox = Toolbox::new();
    let postgres = "export PGDATA=/tmp/data PGHOST=/tmp\ninitdb --auth=trust > /dev/null\n\
                    pg_ctl --wait --silent --options='-k /tmp -h 127.0.0.1' --log=/tmp/log start > /dev/null || cat /tmp/log\n\
                    psql --no-psqlrc --tuples-only --no-align --dbname=postgres --command='create table t as select generate_series(1, 1000) n' \
                    --command='select sum(n) from t'\npg_ctl --silent --mode=fast stop";
    assert_eq!(toolbox.said_by("postgres", postgres, &[]), "SELECT 1000\n500500");
    let git = "git config --global user.name x; git config --global user.email x@example.org; git config --global init.defaultBranch main\n\
               git init -q one && cd one && for n in 1 2 3; do echo $n > file; git add file; git commit -qm $n; done\n\
               cd .. && git clone -q one two && cd two && git checkout -q -b other HEAD~1 && echo x > other && git add . && git commit -qm other\n\
               git merge -q main -m merge && git gc -q && git log --oneline | wc -l && git fsck 2>&1 | grep -c error || true";
    assert_eq!(toolbox.said(git, &[]), "5\n0");
    let shell = "seq 1 100000 | sort -rn | uniq | head -3 | tr '\\n' ' ' || true\n\
                 diff <(seq 1 5) <(seq 1 5 | tac | sort -n) && echo same\n\
                 cat <<< here; printf '%s\\n' a b c | tee /tmp/copy | wc -l; coproc cat; echo through >&${COPROC[1]}; read -ru ${COPROC[0]} line; echo $line\n\
                 (trap 'echo trapped; exit 0' TERM; kill -TERM $BASHPID; sleep 1); timeout 0.2 sleep 5 || echo $?\n\
                 tar -C /usr/include -cf - linux | xz -0 | xz -d | tar -tf - | wc -l | grep -c '[0-9][0-9]'\n\
                 cd /tmp && zip -qr a.zip copy && unzip -qo a.zip && cp -a copy copy2 && cmp copy copy2 && nproc | grep -c .";
    let said = toolbox.said(shell, &[]);
    assert_eq!(said, "100000 99999 99998 same\nhere\n3\nthrough\ntrapped\n124\n1\n1");
}

/// Each by the reason that the document gives for it; one that works after all has no place there.
#[test]
fn what_is_said_not_to_work_does_not() {
    let toolbox = Toolbox::new();
    for (script, reason) in [
        ("free", "/proc"),
        ("uptime", "uptime"),
        ("ping -c 1 127.0.0.1", "not permitted"),
        ("strace true", "PTRACE"),
        ("unshare --user true", "not permitted"),
        ("chroot / true", "not permitted"),
        ("mount -t tmpfs x /mnt", "permi"),
        ("su postgres -c true", "cannot set groups"),
        ("python3 -c 'import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)'", "not supported"),
        ("curl -sS --max-time 5 http://192.0.2.1", "192.0.2.1"),
    ] {
        let run = toolbox.run("0", script, &[]);
        let said = run["stderr"].as_str().expect("text").to_owned() + run["stdout"].as_str().expect("text");
        assert_ne!(run["exit_code"], 0, "{script} works: {said}");
        assert!(said.contains(reason), "{script} says {said:?}, not {reason:?}");
    }
    // And what looks as if it might not, but does.
    assert_eq!(toolbox.said("node -p 'require(\"os\").cpus().length'", &[]), "0");
}

//! Certificates of the tests' own, made with OpenSSL.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use support::{Builder, Daemon, Finished, Folder, tool};

/// A folder with a certificate and its key, and more of them if a test likes.
pub(crate) struct Certificates(Folder);

#[track_caller]
fn openssl(words: &[&str]) {
    Finished::output(&tool("openssl"), words);
}

impl Certificates {
    /// With one for `localhost` that is good for thirty days.
    pub(crate) fn new() -> Self {
        let this = Self(Folder::new());
        this.make("server", "30");
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Makes `NAME.pem` and `NAME.key`, which everybody may read: the server is not root.
    pub(crate) fn make(&self, name: &str, days: &str) {
        let (key, certificate) = (self.text(&format!("{name}.key")), self.text(&format!("{name}.pem")));
        let mut words =
            vec!["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        words.extend(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        words.extend(["-days", days, "-keyout", &key, "-out", &certificate]);
        openssl(&words);
        self.show(&format!("{name}.key"));
    }

    /// Makes `NAME.pem`, which the clock has left behind, over the key of `server`.
    pub(crate) fn make_expired(&self, name: &str) {
        let (key, request, out) =
            (self.text("server.key"), self.text("request"), self.text(&format!("{name}.pem")));
        openssl(&["req", "-new", "-key", &key, "-subj", "/CN=localhost", "-out", &request]);
        for (file, text) in [("index", ""), ("serial", "01\n")] {
            std::fs::write(self.path(file), text).expect("write a file");
        }
        let config = format!(
            "[ca]\ndefault_ca=d\n[d]\ndatabase={}\nserial={}\nnew_certs_dir={}\ndefault_md=sha256\npolicy=p\nx509_extensions=v3\n[v3]\nbasicConstraints=CA:FALSE\n[p]\ncommonName=supplied\n",
            self.text("index"),
            self.text("serial"),
            self.0.path().display()
        );
        std::fs::write(self.path("ca.cnf"), config).expect("write a file");
        let config = self.text("ca.cnf");
        let mut words = vec!["ca", "-batch", "-notext", "-selfsign", "-config", &config, "-keyfile", &key];
        words.extend(["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"]);
        words.extend(["-in", &request, "-out", &out]);
        openssl(&words);
    }

    /// Makes `NAME.key`, the server's under a password.
    pub(crate) fn encrypt_key(&self, name: &str) {
        let (key, out) = (self.text("server.key"), self.text(&format!("{name}.key")));
        openssl(&["pkcs8", "-topk8", "-in", &key, "-out", &out, "-passout", "pass:secret"]);
        self.show(&format!("{name}.key"));
    }

    pub(crate) fn show(&self, name: &str) {
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(self.path(name), mode).expect("show a file");
    }

    /// A daemon that serves under these two files.
    pub(crate) fn daemon(&self, certificate: &str, key: &str) -> Builder {
        Daemon::builder()
            .host_image()
            .flag("--tls-cert", self.text(certificate))
            .flag("--tls-key", self.text(key))
    }

    /// Calls the daemon with curl, which believes `trusted` only; words behind it are curl's.
    pub(crate) fn curl(&self, daemon: &Daemon, trusted: &str, path: &str, words: &[&str]) -> Finished {
        let mut command = Command::new(tool("curl"));
        command.args(["--silent", "--show-error", "--max-time", "60", "--cacert"]).arg(self.path(trusted));
        command.args(words).arg(format!("https://localhost:{}{path}", daemon.address().port()));
        Finished::of(
            command.args(["--connect-to", &format!("localhost::127.0.0.1:{}", daemon.address().port())]),
        )
    }

    /// One number of the page of metrics.
    pub(crate) fn metric(&self, daemon: &Daemon, trusted: &str, name: &str) -> f64 {
        let page = self.curl(daemon, trusted, "/metrics", &[]).stdout_text();
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in {page}")).parse().expect("a number")
    }
}

//! nginx from Debian's package, configured in the test's directory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::process::{Running, eventually};
use crate::procfs;
use crate::world::{Side, World, free_port, wait_for_port};

/// Worker processes of every server here.
pub const WORKERS: usize = 4;

/// A running server: `/` answers 64 bytes, `/files/` serves the directory `www` and takes PUT.
#[derive(Debug)]
pub struct Nginx {
    pub running: Running,
    pub port: u16,
    pub tls_port: u16,
    config: String,
}

impl Nginx {
    pub fn start(world: &World, side: Side) -> Result<Self> {
        Self::start_by(world, side, &[])
    }

    /// With words before the command, such as `taskset`.
    pub fn start_by(world: &World, side: Side, prefix: &[&str]) -> Result<Self> {
        let (port, tls_port) = (free_port()?, free_port()?);
        let home = world.dir.join(format!("nginx-{port}"));
        fs::create_dir_all(home.join("www/files"))?;
        certificate(world)?;
        let config = home.join("nginx.conf");
        fs::write(&config, configuration(&home, &world.dir, port, tls_port))?;
        let config = config.display().to_string();
        let words: Vec<&str> = prefix
            .iter()
            .copied()
            .chain(["/usr/sbin/nginx", "-c", &config, "-g", "daemon off;"])
            .collect();
        let mut running = world.start("nginx", side, &words)?;
        wait_for_port(&mut running, port)?;
        let nginx = Nginx { running, port, tls_port, config };
        eventually(Duration::from_secs(10), || {
            let workers = nginx.workers()?.len();
            ensure!(workers == WORKERS, "nginx has {workers} workers");
            Ok(())
        })?;
        Ok(nginx)
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    #[must_use]
    pub fn url_v6(&self) -> String {
        format!("http://[::1]:{}/", self.port)
    }

    /// The path of its configuration.
    #[must_use]
    pub fn config(&self) -> &str {
        &self.config
    }

    /// The directory behind `/files/`.
    #[must_use]
    pub fn files(&self, world: &World) -> std::path::PathBuf {
        world.dir.join(format!("nginx-{}/www/files", self.port))
    }

    /// The worker processes that take new connections: not those that a reload is retiring.
    pub fn workers(&self) -> Result<Vec<u32>> {
        let children = procfs::children(self.running.pid())?;
        Ok(children
            .into_iter()
            .filter(|pid| {
                let title = procfs::command_line(*pid);
                title.contains("worker process") && !title.contains("shutting down")
            })
            .collect())
    }

    /// `nginx -s reload`, as an administrator would call it, and waits until new workers have replaced the old.
    pub fn reload(&self, world: &World) -> Result<()> {
        let old = self.workers()?;
        world.run(
            Side::Plain,
            &["/usr/sbin/nginx", "-c", &self.config, "-s", "reload"],
            Duration::from_secs(20),
        )?;
        eventually(Duration::from_secs(20), || {
            let new = self.workers()?;
            ensure!(
                new.len() == WORKERS && new.iter().all(|pid| !old.contains(pid)),
                "workers before the reload: {old:?}, now: {new:?}"
            );
            Ok(())
        })
    }

    /// Ends as an administrator would end it: quickly, and with status 0.
    pub fn stop(self) -> Result<()> {
        let pid = self.running.pid();
        let ended = self.running.stop(Signal::TERM, Duration::from_secs(15))?;
        ensure!(ended.status.success(), "nginx ended with {}: {}", ended.how(), ended.err);
        eventually(Duration::from_secs(5), || {
            ensure!(Running::group_is_gone(pid), "workers outlive their master");
            Ok(())
        })
    }

    /// What the error log says of errors (not of notices).
    pub fn complaints(&self, world: &World) -> Result<Vec<String>> {
        let log = world.dir.join(format!("nginx-{}/error.log", self.port));
        let text = fs::read_to_string(log)?;
        let serious = ["[error]", "[crit]", "[alert]", "[emerg]"];
        Ok(text
            .lines()
            .filter(|line| serious.iter().any(|level| line.contains(level)))
            .map(str::to_owned)
            .collect())
    }
}

/// A self-made certificate for 127.0.0.1, once per test.
fn certificate(world: &World) -> Result<()> {
    if world.dir.join("cert.pem").exists() {
        return Ok(());
    }
    let (key, cert) = (world.path("key.pem"), world.path("cert.pem"));
    let words = [
        "/usr/bin/openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1,IP:::1",
        "-keyout",
        &key,
        "-out",
        &cert,
    ];
    world.run(Side::Plain, &words, Duration::from_secs(20)).context("openssl").map(drop)
}

fn configuration(home: &Path, world: &Path, port: u16, tls_port: u16) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let (home, world) = (home.display(), world.display());
    format!(
        "{user}
worker_processes {WORKERS};
pid {home}/pid;
error_log {home}/error.log notice;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_max_body_size 1g;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    ssl_certificate {world}/cert.pem;
    ssl_certificate_key {world}/key.pem;
    server {{
        listen 127.0.0.1:{port};
        listen [::1]:{port};
        listen 127.0.0.1:{tls_port} ssl;
        listen [::1]:{tls_port} ssl;
        location = / {{
            default_type text/plain;
            return 200 \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\\n\";
        }}
        location /files/ {{
            root {home}/www;
            dav_methods PUT DELETE;
        }}
    }}
}}
"
    )
}

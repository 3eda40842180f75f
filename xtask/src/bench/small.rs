//! nginx with one worker, as a guest by name or natively: what several run of at once.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use nk_programs::process::Running;
use nk_programs::world::{Side, World, free_port, wait_for_port};
use rustix::process::Signal;

/// One server, and its port on 127.0.0.1.
pub(super) struct Small {
    running: Running,
    pub(super) port: u16,
}

impl Small {
    /// `guest`: none runs it natively. `location`: what it does with a request. `upstream`: lines beside the server, or none.
    pub(super) fn start(
        world: &World,
        name: &str,
        guest: Option<&str>,
        upstream: &str,
        location: &str,
    ) -> Result<Small> {
        let port = free_port()?;
        let home = world.dir.join(name);
        fs::create_dir_all(&home)?;
        let home = home.display();
        let config = format!(
            "user root; worker_processes 1; pid {home}/pid; error_log {home}/error.log;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {home}/b; proxy_temp_path {home}/p;
fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
{upstream}
server {{ listen 127.0.0.1:{port}; location / {{ {location} }} }} }}
"
        );
        let file = world.write(&format!("{name}.conf"), config)?;
        let words = ["/usr/sbin/nginx", "-c", &file, "-g", "daemon off;"];
        let mut running = match guest {
            Some(guest) => world.start_as(guest, &words)?,
            None => world.start(name, Side::Plain, &words)?,
        };
        wait_for_port(&mut running, port)?;
        Ok(Small { running, port })
    }

    pub(super) fn stop(self) -> Result<()> {
        self.running.stop(Signal::TERM, Duration::from_secs(15)).map(drop)
    }
}

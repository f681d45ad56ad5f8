//! A Redis of a test's own: private ports and folder, gone with the test.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// One Redis, or several that belong together.
pub struct RedisServer {
    processes: Vec<Child>,
    url: String,
    folder: tempfile::TempDir,
}

impl RedisServer {
    /// A single server.
    pub fn standalone() -> Self {
        let port = free_port();
        let mut server = Self::new(format!("redis://127.0.0.1:{port}"));
        server.spawn(port, &[]);
        server
    }

    /// A Redis Cluster of three masters.
    pub fn cluster() -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let [first, second, third] = ports;
        let mut server = Self::new(format!(
            "redis-cluster://127.0.0.1:{first}?node=127.0.0.1:{second}&node=127.0.0.1:{third}"
        ));
        for port in ports {
            server.spawn(port, &["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]);
        }
        let made = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(ports.map(|port| format!("127.0.0.1:{port}")))
            .arg("--cluster-yes")
            .stdout(Stdio::null())
            .status()
            .expect("redis-cli is installed");
        assert!(made.success());
        for port in ports {
            wait_until("the cluster is whole", || says(port, "CLUSTER INFO", "cluster_state:ok"));
        }
        server
    }

    /// A master and the sentinel that watches it.
    pub fn sentinel() -> Self {
        let (master, sentinel) = (free_port(), free_port());
        let url = format!("redis-sentinel://127.0.0.1:{sentinel}?sentinelServiceName=calls");
        let mut server = Self::new(url);
        server.spawn(master, &[]);
        let settings = server.folder().join("sentinel.conf");
        let text = format!(
            "port {sentinel}\nbind 127.0.0.1\nsentinel monitor calls 127.0.0.1 {master} 1\n"
        );
        fs::write(&settings, text).unwrap();
        let settings = settings.to_str().unwrap();
        server.run(sentinel, Command::new("redis-server").args([settings, "--sentinel"]));
        server
    }

    fn new(url: String) -> Self {
        Self { processes: Vec::new(), url, folder: tempfile::tempdir().unwrap() }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn spawn(&mut self, port: u16, settings: &[&str]) {
        let folder = self.folder().join(port.to_string());
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        self.run(port, command.arg("--dir").arg(folder).args(settings));
    }

    fn run(&mut self, port: u16, command: &mut Command) {
        let process = command.stdout(Stdio::null()).spawn().expect("redis-server is installed");
        self.processes.push(process);
        wait_until("redis-server answers", || says(port, "PING", "+PONG"));
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().expect("it is ours");
            process.wait().expect("it is ours");
        }
    }
}

/// A port below those that the system gives out: a Redis Cluster adds 10,000 to it for its bus.
fn free_port() -> u16 {
    loop {
        let given = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = 10_000 + given.local_addr().unwrap().port() % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < patience, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a server answers `command` with something that holds `expected`.
fn says(port: u16, command: &str, expected: &str) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    answer().is_ok_and(|answer| answer.contains(expected))
}

//! What the servers and Redis have used so far, read from outside.

use std::{fs, io};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Common, report::BenchError};

/// The kernel counts CPU time in these.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: u64 = 1024;

/// What has been used up to one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Used {
    /// CPU time of all the servers' processes, user and system.
    pub cpu_s: f64,
    /// Their resident memory.
    pub memory_bytes: u64,
    /// This process' own CPU time.
    pub own_cpu_s: f64,
    pub redis: Option<RedisUsed>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct RedisUsed {
    pub commands: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
    pub cpu_s: f64,
}

impl Used {
    pub async fn now(common: &Common) -> Result<Self, BenchError> {
        let mut used = Self { own_cpu_s: cpu_s("self")?, ..Self::default() };
        for pid in &common.pids {
            used.cpu_s += cpu_s(&pid.to_string())?;
            used.memory_bytes += memory_bytes(*pid)?;
        }
        if let Some(address) = &common.redis {
            used.redis = Some(redis(address).await.map_err(BenchError::Redis)?);
        }
        Ok(used)
    }
}

/// User and system time of a process: fields 14 and 15 of its stat (proc(5)).
fn cpu_s(pid: &str) -> Result<f64, BenchError> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    // The second field is a name that may hold anything, in parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

fn memory_bytes(pid: u32) -> Result<u64, BenchError> {
    let status = read(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or_default() * KIB)
}

fn read(path: String) -> Result<String, BenchError> {
    fs::read_to_string(&path).map_err(|error| BenchError::Process { path, error })
}

/// The counters of a Redis (INFO).
async fn redis(address: &str) -> io::Result<RedisUsed> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"INFO stats\r\nINFO cpu\r\nQUIT\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let field = |name: &str| {
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_default().trim()
    };
    let number = |name| field(name).parse().unwrap_or_default();
    let seconds = |name| field(name).parse::<f64>().unwrap_or_default();
    Ok(RedisUsed {
        commands: number("total_commands_processed"),
        input_bytes: number("total_net_input_bytes"),
        output_bytes: number("total_net_output_bytes"),
        cpu_s: seconds("used_cpu_user") + seconds("used_cpu_sys"),
    })
}

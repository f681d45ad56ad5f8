//! Resource usage of the servers and of Redis, read from outside.

use std::{fs, io, time::Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Common, report::BenchError};

/// Clock ticks per second, the kernel's unit of CPU time.
const TICKS_PER_SECOND: f64 = 100.0;
const KIB: u64 = 1024;

/// The usage up to one moment.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub at: Instant,
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
    /// All commands, including those inside scripts.
    pub commands: u64,
    /// Publishes.
    pub publishes: u64,
    /// Scripts and channel queries: the other requests of servers that use scripts.
    pub scripts: u64,
    /// How long those scripts took inside Redis.
    pub script_us: u64,
    pub input_bytes: u64,
    pub output_bytes: u64,
    /// The memory of the data.
    pub memory_bytes: u64,
    pub cpu_s: f64,
}

impl Used {
    pub(super) async fn now(common: &Common) -> Result<Self, BenchError> {
        let mut used = Self {
            at: Instant::now(),
            cpu_s: 0.0,
            memory_bytes: 0,
            own_cpu_s: cpu_s("self")?,
            redis: None,
        };
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
pub fn cpu_s(pid: &str) -> Result<f64, BenchError> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    // The second field is a name in parentheses, which may contain anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = after_name.split_whitespace().skip(11).take(2);
    Ok(ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}

pub fn memory_bytes(pid: u32) -> Result<u64, BenchError> {
    let status = read(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or_default() * KIB)
}

fn read(path: String) -> Result<String, BenchError> {
    fs::read_to_string(&path).map_err(|error| BenchError::Process { path, error })
}

/// The counters of a Redis at HOST:PORT (INFO).
pub async fn redis(address: &str) -> io::Result<RedisUsed> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(b"INFO stats\r\nINFO memory\r\nINFO cpu\r\nINFO commandstats\r\nQUIT\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(read_info(&answer))
}

fn read_info(answer: &str) -> RedisUsed {
    let mut used = RedisUsed::default();
    for (name, value) in answer.lines().filter_map(|line| line.split_once(':')) {
        let number = || value.trim().parse().unwrap_or_default();
        let seconds = || value.trim().parse::<f64>().unwrap_or_default();
        match name {
            "total_commands_processed" => used.commands = number(),
            "total_net_input_bytes" => used.input_bytes = number(),
            "used_memory" => used.memory_bytes = number(),
            "total_net_output_bytes" => used.output_bytes = number(),
            "used_cpu_user" | "used_cpu_sys" => used.cpu_s += seconds(),
            _ => {
                let Some(command) = name.strip_prefix("cmdstat_") else { continue };
                match command.split('|').next().unwrap_or_default() {
                    "publish" | "spublish" => used.publishes += calls(value),
                    "eval" | "evalsha" | "eval_ro" | "evalsha_ro" | "fcall" | "fcall_ro"
                    | "pubsub" => {
                        used.scripts += calls(value);
                        used.script_us += part(value, "usec=");
                    }
                    _ => {}
                }
            }
        }
    }
    used
}

/// How often a command was called.
fn calls(stat: &str) -> u64 {
    part(stat, "calls=")
}

/// A part of `calls=12,usec=345,…`.
fn part(stat: &str, name: &str) -> u64 {
    let part = stat.split(',').find_map(|part| part.strip_prefix(name));
    part.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_says_is_read() {
        let answer = "$99\r\n# Stats\r\ntotal_commands_processed:90\r\n\
            total_net_input_bytes:1000\r\ntotal_net_output_bytes:2000\r\n\
            # Memory\r\nused_memory:3000\r\n\
            # CPU\r\nused_cpu_sys:1.500000\r\nused_cpu_user:0.250000\r\n\
            used_cpu_sys_children:9.000000\r\n# Commandstats\r\n\
            cmdstat_spublish:calls=12,usec=30,usec_per_call=2.50\r\n\
            cmdstat_publish:calls=3,usec=30\r\ncmdstat_evalsha:calls=5,usec=10\r\n\
            cmdstat_pubsub|shardnumsub:calls=2,usec=1\r\ncmdstat_hset:calls=70,usec=1\r\n+OK\r\n";
        let used = read_info(answer);
        assert_eq!((used.commands, used.publishes, used.scripts), (90, 15, 7));
        assert_eq!((used.script_us, used.memory_bytes), (11, 3_000));
        assert_eq!((used.input_bytes, used.output_bytes), (1_000, 2_000));
        assert!((used.cpu_s - 1.75).abs() < 1e-9);
    }
}

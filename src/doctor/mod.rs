//! `switchboard doctor`: compares a configuration with the world. Each check asks what a node would ask, changes nothing
//! that lasts, and is bounded in time. A finding is one line, which says what to do if something is wrong.
//!
//! - `redis`: version, policy, latency, script, channel
//! - `history`: the database of the call history
//! - `turn`, with `stun` for its messages: an allocation with the credentials that clients get
//! - `front`: the load balancer, asked as a client does

mod front;
mod history;
mod redis;
mod stun;
mod turn;

use std::{fmt, future::Future, time::Duration};

use http::{Method, Request};
use http_body_util::Full;

use crate::{
    auth::{Checker, KeySource, LEEWAY, Trust},
    authorize,
    config::{Auth, Config, Front},
    fetch::{Fetcher, Limits},
    ice::Ice,
    metrics::open_files,
    time::{Clock, Timestamp},
};

/// Bound on all checks of one part. Each of its steps has a shorter one.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on a step.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Difference of clocks beyond which deadlines are visibly early or late.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(1);
/// Open files beside those of sockets: connections to Redis and the database, the log, listeners.
const OTHER_FILES: u64 = 100;

/// All findings, in the order of the parts.
#[derive(Debug)]
pub struct Findings(Vec<Finding>);

/// One result. Displays as one line.
#[derive(Debug, Clone)]
struct Finding {
    verdict: Verdict,
    part: &'static str,
    what: String,
    /// What to do.
    fix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Fine,
    /// It works, and something should be done.
    Doubtful,
    Wrong,
}

impl Finding {
    fn fine(part: &'static str, what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fine, part, what: what.into(), fix: String::new() }
    }

    fn doubtful(part: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Doubtful, part, what: what.into(), fix: fix.into() }
    }

    fn wrong(part: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Wrong, part, what: what.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Fine => "ok",
            Verdict::Doubtful => "warn",
            Verdict::Wrong => "FAIL",
        };
        let Self { part, what, fix, .. } = self;
        let line = if fix.is_empty() { what.clone() } else { format!("{what}: {fix}") };
        write!(f, "{verdict:<4}  {part:<9} {}", line.replace(char::is_control, " "))
    }
}

impl Findings {
    pub fn are_wrong(&self) -> bool {
        self.0.iter().any(|finding| finding.verdict == Verdict::Wrong)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

/// Runs all checks at the same time.
pub async fn examine(config: Config, front: Option<Front>) -> Findings {
    let (redis, history, keys, backend, relays, front) = tokio::join!(
        bounded("redis", redis::check(&config)),
        bounded("history", history::check(&config)),
        bounded("tokens", check_tokens(&config)),
        bounded("authorize", check_backend(config.authorize.as_ref())),
        turn::check(&config.ice, Ice::new(config.ice.clone(), Clock::System)),
        bounded("url", front::check(&config, front)),
    );
    let machine = check_files(&config);
    Findings([machine, redis, history, keys, backend, relays, front].concat())
}

async fn bounded(part: &'static str, findings: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    tokio::time::timeout(PART_TIMEOUT, findings).await.unwrap_or_else(|_| {
        vec![Finding::wrong(
            part,
            format!("no result within {PART_TIMEOUT:?}"),
            "see that it is reachable from this machine and not overloaded",
        )]
    })
}

/// Whether the limit of open files of this process suffices for the sockets that the settings permit.
fn check_files(config: &Config) -> Vec<Finding> {
    const PART: &str = "files";
    let Some(open) = open_files() else { return Vec::new() };
    let Some(sockets) = config.limits.sockets else {
        let what = format!("{open} open files for this shell, and the limit of sockets is off");
        return vec![Finding::fine(PART, what)];
    };
    let wanted = u64::from(sockets) + OTHER_FILES;
    let what = format!("{open} open files for this shell, {sockets} sockets by SWITCHBOARD_LIMITS");
    let fix = format!(
        "let the service's own limit be {wanted} or more (ulimit -n, LimitNOFILE=, the container runtime), or lower \
         sockets= in SWITCHBOARD_LIMITS"
    );
    vec![if open >= wanted {
        Finding::fine(PART, what)
    } else if config.listen.ip().is_loopback() {
        Finding::doubtful(PART, what, fix)
    } else {
        Finding::wrong(PART, what, fix)
    }]
}

/// Whether tokens can be checked.
async fn check_tokens(config: &Config) -> Vec<Finding> {
    const PART: &str = "tokens";
    let trust = match &config.auth {
        Auth::Jwt(trust) => trust,
        Auth::Open if config.listen.ip().is_loopback() => {
            return vec![Finding::fine(PART, "none are needed: open mode, on this machine only")];
        }
        Auth::Open => {
            let what = "open mode, and the service listens beyond this machine";
            let fix = "set SWITCHBOARD_AUTH=jwt: any client may act as any user";
            return vec![Finding::doubtful(PART, what, fix)];
        }
    };
    vec![match usable_keys(trust).await {
        Ok(what) => Finding::fine(PART, what),
        Err(error) => {
            let (setting, fix) = match &trust.keys {
                KeySource::Secret(_) => ("jwt_secret", "generate 32 bytes or more"),
                KeySource::PublicKey(_) => ("jwt_public_key", "compare it with the issuer's key"),
                KeySource::KeySet(_) => (
                    "jwks_url",
                    "see that this machine reaches SWITCHBOARD_JWKS_URL, trusts its certificate (SSL_CERT_FILE) and \
                     that it has keys of a known type",
                ),
            };
            Finding::wrong(PART, format!("{setting}: {error:#}"), fix)
        }
    }]
}

async fn usable_keys(trust: &Trust) -> anyhow::Result<String> {
    let keys = Checker::new(trust.clone())?.usable_keys().await?;
    Ok(match &trust.keys {
        KeySource::Secret(_) => "a shared secret".to_owned(),
        KeySource::PublicKey(_) => "a public key".to_owned(),
        KeySource::KeySet(url) => format!("{url} has {keys} usable keys"),
    })
}

/// Whether the backend that authorizes calls answers at all. It is asked nothing: it may count what it is asked.
async fn check_backend(settings: Option<&authorize::Settings>) -> Vec<Finding> {
    const PART: &str = "authorize";
    let Some(settings) = settings else { return Vec::new() };
    let limits = Limits { timeout: STEP_TIMEOUT, max_bytes: 64 * 1024, max_concurrent: 1 };
    let asked = async {
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::OPTIONS;
        *request.uri_mut() = settings.url.uri().clone();
        anyhow::Ok(Fetcher::new(settings.url.uri(), limits)?.fetch(request).await?.status())
    };
    vec![match asked.await {
        Ok(status) => Finding::fine(PART, format!("{} answers (OPTIONS: {status})", settings.url)),
        Err(error) => Finding::wrong(
            PART,
            format!("{}: {error:#}", settings.url),
            "until SWITCHBOARD_AUTHORIZE_URL answers, calls are decided by SWITCHBOARD_AUTHORIZE_FAIL",
        ),
    }]
}

/// Compares another clock with this machine's: it showed `theirs` at some time from `before` to now.
fn compare_clock(part: &'static str, theirs: Timestamp, before: Timestamp) -> Finding {
    let now = Clock::System.now();
    let apart = (theirs - now).max(before - theirs);
    if apart <= MAX_CLOCK_DIFFERENCE {
        return Finding::fine(part, "its clock and this machine's agree");
    }
    let what = format!("its clock and this machine's differ by {apart:?}");
    let fix = "set both by NTP: tokens and TURN credentials expire early or late";
    if apart <= LEEWAY {
        Finding::doubtful(part, what, fix)
    } else {
        Finding::wrong(part, what, fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let wrong = Finding::wrong("redis", "cannot be\nreached", "start it");
        assert_eq!(wrong.to_string(), "FAIL  redis     cannot be reached: start it");
        let all = Findings(vec![Finding::fine("url", "well"), Finding::doubtful("url", "a", "b")]);
        assert_eq!(all.to_string(), "ok    url       well\nwarn  url       a: b\n");
        assert!(!all.are_wrong() && Findings(vec![wrong]).are_wrong());
    }

    #[test]
    fn clocks_are_compared_within_the_time_of_a_question() {
        let now = Clock::System.now();
        let verdict = |theirs| compare_clock("redis", theirs, now - Duration::from_secs(2)).verdict;
        assert_eq!(verdict(now), Verdict::Fine);
        assert_eq!(verdict(now - Duration::from_secs(1)), Verdict::Fine);
        assert_eq!(verdict(now + Duration::from_secs(8)), Verdict::Doubtful);
        assert_eq!(verdict(now - Duration::from_mins(1)), Verdict::Wrong);
    }
}

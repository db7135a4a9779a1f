//! systemd as the keeper of cgroups: starts, limits and stops a container's scope.
//!
//! Each request has a connection and a deadline of its own. It must never touch a unit that was there
//! before, and never call while the scope is frozen: systemd could not move or end what is in it.

mod bus;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nix::errno::Errno;
use tokio::time::{Instant, sleep_until};
use zvariant::{OwnedObjectPath, OwnedValue, Value};

pub use bus::socket_to;
use bus::{AGAIN, Bus, Failure};

use crate::error::{Doing, Error, Kind, Result};
use crate::plan::systemd::{Property, Unit};

/// For a job to be taken back, when all other time is over.
const CANCEL_LIMIT: Duration = Duration::from_secs(1);

/// Where systemd is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Is there where systemd is pid 1 (`sd_booted(3)`).
    pub booted: PathBuf,
    /// systemd's own socket: the same interface without a bus between, as `systemctl` of root has it.
    pub private: PathBuf,
    /// The system bus, where the other cannot be reached.
    pub bus: PathBuf,
}

/// systemd, by a way to open sockets: this process may be in a pod's network namespace.
#[derive(Debug)]
pub struct Systemd<'a, F> {
    places: &'a Places,
    open: F,
    /// For a request as a whole.
    limit: Duration,
}

impl<'a, F: Fn(&Path) -> Result<StdStream, Errno> + Sync> Systemd<'a, F> {
    /// An error where systemd is not pid 1.
    pub fn new(places: &'a Places, open: F, limit: Duration) -> Result<Systemd<'a, F>> {
        if !places.booted.is_dir() {
            let text = format!("systemd does not run here: there is no {:?}", places.booted);
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        Ok(Systemd { places, open, limit })
    }

    async fn bus(&self, end: Instant) -> Result<Bus, Failure> {
        Bus::connect(self.places, &self.open, end).await
    }

    /// The number of systemd's version.
    pub async fn version(&self) -> Result<u32> {
        let end = Instant::now() + self.limit;
        let ask = async {
            let mut bus = self.bus(end).await?;
            let of = ("org.freedesktop.systemd1.Manager", "Version");
            let value: (OwnedValue,) =
                bus.call_at("org.freedesktop.DBus.Properties", "Get", &of).await?;
            Ok::<_, Failure>(String::try_from(value.0).unwrap_or_default())
        };
        let text = ask.await.map_err(Error::from).doing(|| "systemd: Version")?;
        // `252.39-1~deb12u1`, and in some versions `v252`.
        let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        Ok(digits[..end].parse().unwrap_or(0))
    }

    /// Starts a scope with one process in it. `inside` says whether the process is in the scope's
    /// cgroup: the answer where a connection broke before systemd's came. `job`: that of systemd as long
    /// as it has one, for [`Systemd::cancel`] if nobody waits for its end.
    pub async fn start(
        &self,
        unit: &Unit,
        pid: u32,
        properties: &[Property],
        inside: impl Fn() -> bool,
        job: &AtomicU32,
    ) -> Result<()> {
        let end = Instant::now() + self.limit;
        let (mut reset, mut lost) = (false, false);
        let result = loop {
            match self.start_once(unit, (pid, properties), &mut reset, job, end).await {
                Err(Failure::Lost(_)) if inside() => break Ok(()),
                Err(Failure::Lost(error)) if again(end).await => {
                    lost = true;
                    log::warn!("start unit {:?}: {error}: again", unit.name);
                }
                Err(Failure::Refused { name, .. }) if name == "UnitExists" => {
                    // That of a call whose answer was lost. It may be on its way yet.
                    if inside() {
                        break Ok(());
                    }
                    if lost && again(end).await {
                        continue;
                    }
                    let text = "it exists, and is not ours";
                    break Err(Error::new(Kind::FailedPrecondition, text));
                }
                result => break result.map_err(Error::from),
            }
        };
        result.doing(|| format!("start unit {:?}", unit.name))
    }

    async fn start_once(
        &self,
        unit: &Unit,
        (pid, properties): (u32, &[Property]),
        reset: &mut bool,
        queued: &AtomicU32,
        end: Instant,
    ) -> Result<(), Failure> {
        let mut bus = self.bus(end).await?;
        let mut all: Vec<(&str, &Value<'_>)> =
            properties.iter().map(|property| (property.name.as_str(), &property.value)).collect();
        let pids = Value::from(vec![pid]);
        all.push(("PIDs", &pids));
        type Other<'a> = (&'a str, Vec<(&'a str, &'a Value<'a>)>);
        let call = (unit.name.as_str(), "fail", all, Vec::<Other<'_>>::new());
        let job: OwnedObjectPath = loop {
            match bus.call::<(OwnedObjectPath,)>("StartTransientUnit", &call).await {
                Ok(job) => break job.0,
                // What is left of one that has failed goes; one that runs is not touched.
                Err(Failure::Refused { name, .. }) if name == "UnitExists" && !*reset => {
                    *reset = true;
                    let _ = bus.call::<()>("ResetFailedUnit", &(unit.name.as_str(),)).await;
                }
                Err(failure) => return Err(named("StartTransientUnit", failure)),
            }
        };
        let number = job.rsplit('/').next().and_then(|number| number.parse().ok());
        queued.store(number.unwrap_or(0), Relaxed);
        let result = bus.job(job.as_str()).await?;
        queued.store(0, Relaxed);
        match result.as_str() {
            "done" => Ok(()),
            result => {
                let _ = bus.call::<()>("ResetFailedUnit", &(unit.name.as_str(),)).await;
                let text = format!("StartTransientUnit: the job's result is {result:?}");
                Err(Failure::Broken(Error::new(Kind::Unknown, text)))
            }
        }
    }

    /// Takes a job back that may wait for another unit yet (`After=`). 0: there is none.
    pub async fn cancel(&self, job: u32) {
        if job == 0 {
            return;
        }
        let cancel = async {
            let mut bus = self.bus(Instant::now() + CANCEL_LIMIT).await?;
            bus.call::<()>("CancelJob", &(job,)).await
        };
        match cancel.await {
            // It has ended.
            Ok(()) | Err(Failure::Refused { .. }) => {}
            Err(failure) => log::warn!("cancel job {job}: {}", Error::from(failure)),
        }
    }

    /// Changes properties of a scope, until it ends.
    pub async fn set(&self, unit: &str, properties: &[Property]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let all: Vec<(&str, &Value<'_>)> =
            properties.iter().map(|property| (property.name.as_str(), &property.value)).collect();
        let call = (unit, true, all);
        let end = Instant::now() + self.limit;
        let once = async || {
            let mut bus = self.bus(end).await?;
            let done = bus.call::<()>("SetUnitProperties", &call).await;
            done.map_err(|failure| named("SetUnitProperties", failure))
        };
        // To set them twice is as good as once.
        let result = loop {
            match once().await {
                Err(Failure::Lost(_)) if again(end).await => {}
                result => break result,
            }
        };
        result.map_err(Error::from).doing(|| format!("set properties of unit {unit:?}"))
    }

    /// Stops a scope, and makes systemd forget it. One that is not there is what is wanted.
    pub async fn stop(&self, unit: &str) -> Result<()> {
        let end = Instant::now() + self.limit;
        let once = async || {
            let mut bus = self.bus(end).await?;
            let stopped = match bus.call::<(OwnedObjectPath,)>("StopUnit", &(unit, "replace")).await
            {
                Ok(job) => bus.job(job.0.as_str()).await.map(drop),
                Err(failure) => Err(named("StopUnit", failure)),
            };
            match stopped {
                Err(Failure::Refused { name, .. }) if name.starts_with("StopUnit: NoSuchUnit") => {
                    return Ok(());
                }
                stopped => stopped?,
            }
            match bus.call::<()>("ResetFailedUnit", &(unit,)).await {
                // Gone, as it should be.
                Ok(()) | Err(Failure::Refused { .. }) => Ok(()),
                Err(failure) => Err(failure),
            }
        };
        let result = loop {
            match once().await {
                Err(Failure::Lost(_)) if again(end).await => {}
                result => break result,
            }
        };
        result.map_err(Error::from).doing(|| format!("stop unit {unit:?}"))
    }
}

/// Lets some time pass after a connection was lost: systemd takes a while to start anew, and one that
/// hangs up at once must not keep the loop busy. False: the deadline is too near.
async fn again(end: Instant) -> bool {
    let next = Instant::now() + AGAIN;
    if next < end {
        sleep_until(next).await;
    }
    next < end
}

/// A refusal says which call it answers; the others say it themselves.
fn named(member: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Refused { name, text } if name != "UnitExists" => {
            Failure::Refused { name: format!("{member}: {name}"), text }
        }
        failure => failure,
    }
}

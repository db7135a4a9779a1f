//! `containerd.runtime.sandbox.v1.Sandbox`, one method for each of its calls.
//!
//! Every method must be here: the generated defaults answer "not found", which containerd takes
//! for "already gone".

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::sandbox_api::*;
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;

use super::call::{Call, detached, run};
use super::{convert, cri, metrics};
use crate::api::CreateSandbox;
use crate::shim::Shim;

/// The Sandbox service of a shim.
#[derive(Debug)]
pub(super) struct Sandboxes {
    pub shim: Arc<Shim>,
}

#[async_trait]
impl Sandbox for Sandboxes {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        r: CreateSandboxRequest,
    ) -> Result<CreateSandboxResponse> {
        let shim = self.shim.clone();
        detached(Call::new("CreateSandbox", &r.sandbox_id), async move {
            let config = cri::pod_config(r.options.as_ref())?;
            shim.create_sandbox(CreateSandbox {
                id: r.sandbox_id,
                bundle: PathBuf::from(r.bundle_path),
                netns_path: r.netns_path,
                config,
            })
            .await?;
            Ok(CreateSandboxResponse::new())
        })
        .await
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        r: StartSandboxRequest,
    ) -> Result<StartSandboxResponse> {
        let shim = self.shim.clone();
        detached(Call::new("StartSandbox", &r.sandbox_id), async move {
            let started = shim.start_sandbox(r.sandbox_id).await?;
            let spec = convert::any(convert::SPEC, started.spec.into_bytes());
            Ok(StartSandboxResponse {
                pid: started.pid,
                created_at: convert::timestamp(started.created_at),
                spec: MessageField::some(spec),
                ..Default::default()
            })
        })
        .await
    }

    async fn platform(&self, _: &TtrpcContext, r: PlatformRequest) -> Result<PlatformResponse> {
        run(Call::new("Platform", &r.sandbox_id), async {
            let mut response = PlatformResponse::new();
            let platform = response.platform.mut_or_insert_default();
            platform.os = "linux".to_string();
            platform.architecture = goarch(std::env::consts::ARCH).to_string();
            Ok(response)
        })
        .await
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        r: StopSandboxRequest,
    ) -> Result<StopSandboxResponse> {
        let shim = self.shim.clone();
        detached(Call::new("StopSandbox", &r.sandbox_id), async move {
            shim.stop_sandbox(r.sandbox_id).await?;
            Ok(StopSandboxResponse::new())
        })
        .await
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        r: WaitSandboxRequest,
    ) -> Result<WaitSandboxResponse> {
        run(Call::new("WaitSandbox", &r.sandbox_id), async {
            let exit = self.shim.wait_sandbox(&r.sandbox_id).await?;
            Ok(WaitSandboxResponse {
                exit_status: exit.status,
                exited_at: convert::timestamp(exit.at),
                ..Default::default()
            })
        })
        .await
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        r: SandboxStatusRequest,
    ) -> Result<SandboxStatusResponse> {
        run(Call::new("SandboxStatus", &r.sandbox_id), async {
            Ok(status_response(self.shim.sandbox_status(&r.sandbox_id, r.verbose)?))
        })
        .await
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, r: PingRequest) -> Result<PingResponse> {
        run(Call::new("PingSandbox", &r.sandbox_id), async {
            self.shim.ping_sandbox(&r.sandbox_id)?;
            Ok(PingResponse::new())
        })
        .await
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        r: ShutdownSandboxRequest,
    ) -> Result<ShutdownSandboxResponse> {
        let shim = self.shim.clone();
        detached(Call::new("ShutdownSandbox", &r.sandbox_id), async move {
            shim.shutdown_sandbox(r.sandbox_id).await;
            Ok(ShutdownSandboxResponse::new())
        })
        .await
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        r: SandboxMetricsRequest,
    ) -> Result<SandboxMetricsResponse> {
        run(Call::new("SandboxMetrics", &r.sandbox_id), async {
            let stats = metrics::any(self.shim.sandbox_metrics(&r.sandbox_id)?);
            let mut response = SandboxMetricsResponse::new();
            let metric = response.metrics.mut_or_insert_default();
            metric.timestamp = convert::timestamp(SystemTime::now());
            metric.id = r.sandbox_id;
            metric.data = MessageField::some(stats);
            Ok(response)
        })
        .await
    }
}

fn status_response(status: crate::api::SandboxStatus) -> SandboxStatusResponse {
    // CRI knows these two words and takes all others for "unknown".
    let state = if status.ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" };
    SandboxStatusResponse {
        sandbox_id: status.id,
        pid: status.pid,
        state: state.to_string(),
        info: status.info.into_iter().map(|info| ("info".to_string(), info)).collect(),
        created_at: convert::timestamp(status.created_at),
        exited_at: status.exited_at.map(convert::timestamp).unwrap_or_default(),
        ..Default::default()
    }
}

/// Go's name of an architecture that Rust calls `arch`.
fn goarch(arch: &str) -> &str {
    match arch {
        "x86" => "386",
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        same => same,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::api::SandboxStatus;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_ready_sandbox_in_the_words_of_cri() {
        let response = status_response(SandboxStatus {
            id: "pod".into(),
            pid: 42,
            ready: true,
            created_at: at(7),
            exited_at: None,
            info: Some("{}".into()),
        });
        assert_eq!((response.sandbox_id.as_str(), response.pid), ("pod", 42));
        assert_eq!(response.state, "SANDBOX_READY");
        assert_eq!(response.info["info"], "{}");
        assert_eq!(response.created_at.seconds, 7);
        assert!(response.exited_at.is_none());
    }

    #[test]
    fn a_stopped_sandbox_in_the_words_of_cri() {
        let response = status_response(SandboxStatus {
            id: "pod".into(),
            pid: 42,
            ready: false,
            created_at: at(7),
            exited_at: Some(at(9)),
            info: None,
        });
        assert_eq!(response.state, "SANDBOX_NOTREADY");
        assert_eq!(response.exited_at.seconds, 9);
        assert!(response.info.is_empty());
    }

    #[test]
    fn architectures_have_the_names_of_go() {
        let names = ["x86_64", "aarch64", "riscv64", "s390x"].map(goarch);
        assert_eq!(names, ["amd64", "arm64", "riscv64", "s390x"]);
    }
}

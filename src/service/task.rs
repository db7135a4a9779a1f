//! `containerd.task.v3.Task`, one method for each of its calls.
//!
//! Every method must be here: the generated defaults answer "not found", which containerd takes
//! for "already gone".

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;

use super::call::{Call, detached, run};
use super::convert::{self, target};
use super::metrics;
use crate::api::StdioPaths;
use crate::error::Error;
use crate::shim::Shim;

/// The Task service of a shim.
#[derive(Debug)]
pub(super) struct Tasks {
    pub shim: Arc<Shim>,
}

#[async_trait]
impl Task for Tasks {
    async fn create(&self, _: &TtrpcContext, r: CreateTaskRequest) -> Result<CreateTaskResponse> {
        let shim = self.shim.clone();
        detached(Call::new("Create", &r.id), async move {
            let request = convert::create_container(r, &shim.settings().config)?;
            let pid = shim.create(request).await?;
            Ok(CreateTaskResponse { pid, ..Default::default() })
        })
        .await
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> Result<StartResponse> {
        let (shim, target) = (self.shim.clone(), target(r.id, r.exec_id));
        detached(Call::to("Start", &target), async move {
            Ok(StartResponse { pid: shim.start(target).await?, ..Default::default() })
        })
        .await
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> Result<DeleteResponse> {
        let (shim, target) = (self.shim.clone(), target(r.id, r.exec_id));
        detached(Call::to("Delete", &target), async move {
            let deleted = shim.delete(target).await?;
            Ok(DeleteResponse {
                pid: deleted.pid,
                exit_status: deleted.exit.status,
                exited_at: convert::timestamp(deleted.exit.at),
                ..Default::default()
            })
        })
        .await
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> Result<Empty> {
        let target = target(r.id, r.exec_id);
        let stdio =
            StdioPaths { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr, terminal: r.terminal };
        run(Call::to("Exec", &target), async move {
            let process = convert::json(r.spec, convert::PROCESS, "process")?;
            self.shim.exec(target, &process, stdio)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> Result<StateResponse> {
        let target = target(r.id, r.exec_id);
        run(Call::to("State", &target), async {
            self.shim.delivered(&target).await;
            Ok(convert::state_response(self.shim.state(&target)?))
        })
        .await
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> Result<WaitResponse> {
        let target = target(r.id, r.exec_id);
        run(Call::to("Wait", &target), async {
            let exit = self.shim.wait(&target).await?;
            Ok(WaitResponse {
                exit_status: exit.status,
                exited_at: convert::timestamp(exit.at),
                ..Default::default()
            })
        })
        .await
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> Result<Empty> {
        let target = target(r.id, r.exec_id);
        run(Call::to("Kill", &target), async {
            self.shim.kill(&target, r.signal, r.all)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> Result<PidsResponse> {
        run(Call::new("Pids", &r.id), async {
            let pids = self.shim.pids(&r.id)?;
            let processes = pids.into_iter().map(convert::process_info).collect();
            Ok(PidsResponse { processes, ..Default::default() })
        })
        .await
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> Result<Empty> {
        let shim = self.shim.clone();
        detached(Call::new("Pause", &r.id), async move {
            shim.pause(r.id).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> Result<Empty> {
        let shim = self.shim.clone();
        detached(Call::new("Resume", &r.id), async move {
            shim.resume(r.id).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn checkpoint(&self, _: &TtrpcContext, r: CheckpointTaskRequest) -> Result<Empty> {
        run(Call::new("Checkpoint", &r.id), async { Err(Error::unimplemented("Checkpoint")) }).await
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> Result<Empty> {
        let shim = self.shim.clone();
        detached(Call::new("Update", &r.id), async move {
            let resources = convert::json(r.resources, convert::RESOURCES, "resources")?;
            shim.update(r.id, resources).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> Result<StatsResponse> {
        run(Call::new("Stats", &r.id), async {
            let stats = metrics::any(self.shim.stats(&r.id)?);
            Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
        })
        .await
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> Result<Empty> {
        let target = target(r.id, r.exec_id);
        run(Call::to("ResizePty", &target), async {
            self.shim.resize_pty(&target, r.width, r.height)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> Result<Empty> {
        let target = target(r.id, r.exec_id);
        run(Call::to("CloseIO", &target), async {
            if r.stdin {
                self.shim.close_stdin(&target)?;
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> Result<ConnectResponse> {
        run(Call::new("Connect", &r.id), async {
            let (shim_pid, task_pid) = self.shim.connect(&r.id);
            Ok(ConnectResponse { shim_pid, task_pid, ..Default::default() })
        })
        .await
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> Result<Empty> {
        run(Call::new("Shutdown", &r.id), async {
            self.shim.shutdown();
            Ok(Empty::new())
        })
        .await
    }
}

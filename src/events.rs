//! What happened, in the order containerd must hear it.
//!
//! The queue is ordered and bounded. It must never block its pusher, and never drop an exit before
//! anything else.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use crate::plan::RootfsMount;

/// How many events wait for containerd at most; the Go shim keeps as many.
const CAPACITY: usize = 2048;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal's number.
    pub status: u32,
    /// When the shim saw it.
    pub at: SystemTime,
}

/// An event of containerd's `/tasks/` topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `/tasks/create`
    Create {
        container_id: String,
        bundle: String,
        rootfs: Vec<RootfsMount>,
        stdin: String,
        stdout: String,
        stderr: String,
        terminal: bool,
        pid: u32,
    },
    /// `/tasks/start`
    Start { container_id: String, pid: u32 },
    /// `/tasks/exit`; `id` is the exec's id, or the container's for its init.
    Exit { container_id: String, id: String, pid: u32, exit: Exit },
    /// `/tasks/delete`
    Delete { container_id: String, pid: u32, exit: Exit },
    /// `/tasks/exec-added`
    ExecAdded { container_id: String, exec_id: String },
    /// `/tasks/exec-started`
    ExecStarted { container_id: String, exec_id: String, pid: u32 },
    /// `/tasks/paused`
    Paused { container_id: String },
    /// `/tasks/resumed`
    Resumed { container_id: String },
    /// `/tasks/oom`
    Oom { container_id: String },
}

/// Events on their way to containerd, for one taker. See the module text.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    pushed: Notify,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(SystemTime, Event)>,
    /// The taker has one that it has not yet delivered.
    taken: bool,
    dropped: usize,
}

impl Queue {
    /// Appends `event` with the present time. A full queue loses its oldest event that is not an
    /// exit, and only where all are exits the oldest of them.
    pub fn push(&self, event: Event) {
        let mut state = self.lock();
        if state.waiting.len() == CAPACITY {
            let victim = state.waiting.iter().position(|(_, e)| !matches!(e, Event::Exit { .. }));
            state.waiting.remove(victim.unwrap_or(0));
            state.dropped += 1;
        }
        state.waiting.push_back((SystemTime::now(), event));
        drop(state);
        self.pushed.notify_one();
    }

    /// Takes the oldest event, once there is one. To ask for the next one says that the last one
    /// was delivered.
    pub async fn next(&self) -> (SystemTime, Event) {
        loop {
            {
                let mut state = self.lock();
                let next = state.waiting.pop_front();
                state.taken = next.is_some();
                if let Some(next) = next {
                    return next;
                }
            }
            self.settled.notify_waiters();
            self.pushed.notified().await;
        }
    }

    /// Waits until everything has been delivered, but no longer than `limit`. Says whether it was.
    pub async fn flush(&self, limit: Duration) -> bool {
        let settled = async {
            loop {
                // Made before the look at the state, so that no notice is missed.
                let settled = self.settled.notified();
                if self.is_settled() {
                    break;
                }
                settled.await;
            }
        };
        tokio::time::timeout(limit, settled).await.is_ok()
    }

    /// How many events were lost to a full queue since this was last asked.
    pub fn dropped(&self) -> usize {
        std::mem::take(&mut self.lock().dropped)
    }

    fn is_settled(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && !state.taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder cannot leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(n: usize) -> Event {
        Event::Oom { container_id: n.to_string() }
    }

    fn exit(n: usize) -> Event {
        let exit = Exit { status: 0, at: SystemTime::UNIX_EPOCH };
        Event::Exit { container_id: n.to_string(), id: n.to_string(), pid: 1, exit }
    }

    /// All that waits, in order.
    fn drain(queue: &Queue) -> Vec<Event> {
        queue.lock().waiting.drain(..).map(|(_, event)| event).collect()
    }

    #[tokio::test]
    async fn events_come_in_the_order_they_were_pushed() {
        let queue = Queue::default();
        let before = SystemTime::now();
        (0..3).for_each(|n| queue.push(oom(n)));
        for n in 0..3 {
            let (at, event) = queue.next().await;
            assert_eq!(event, oom(n));
            assert!(at >= before && at <= SystemTime::now());
        }
    }

    #[tokio::test]
    async fn a_waiting_taker_is_woken() {
        let queue = Queue::default();
        let (next, ()) = tokio::join!(queue.next(), async {
            tokio::task::yield_now().await;
            queue.push(oom(7));
        });
        assert_eq!(next.1, oom(7));
    }

    #[test]
    fn a_full_queue_loses_the_oldest_but_no_exit() {
        let queue = Queue::default();
        queue.push(exit(0));
        (1..CAPACITY).for_each(|n| queue.push(oom(n)));
        assert_eq!(queue.dropped(), 0);

        queue.push(exit(CAPACITY));
        queue.push(oom(CAPACITY + 1));
        assert_eq!((queue.dropped(), queue.dropped()), (2, 0));

        let left = drain(&queue);
        assert_eq!(left.len(), CAPACITY);
        assert_eq!(left[..2], [exit(0), oom(3)]);
        assert_eq!(left[CAPACITY - 2..], [exit(CAPACITY), oom(CAPACITY + 1)]);
    }

    #[test]
    fn a_queue_full_of_exits_keeps_the_newest() {
        let queue = Queue::default();
        (0..=CAPACITY).for_each(|n| queue.push(exit(n)));
        let left = drain(&queue);
        assert_eq!((left.len(), &left[0]), (CAPACITY, &exit(1)));
    }

    #[tokio::test]
    async fn flush_waits_for_the_event_in_the_takers_hands() {
        let queue = Queue::default();
        let short = Duration::from_millis(20);
        assert!(queue.flush(Duration::ZERO).await, "nothing was ever pushed");
        queue.push(oom(1));
        assert!(!queue.flush(short).await, "one waits");
        queue.next().await;
        assert!(!queue.flush(short).await, "one is taken but not delivered");
        tokio::select! {
            flushed = queue.flush(Duration::from_secs(10)) => assert!(flushed),
            _ = async { tokio::task::yield_now().await; queue.next().await } => unreachable!(),
        }
    }
}

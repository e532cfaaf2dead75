//! A work queue: each key is reconciled by one task at a time, again when something changed meanwhile, and again with
//! growing pauses when it failed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};

use crate::cache::Key;

/// What is to be done after a reconcile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing until something changes.
    Done,
    /// Look again after this time, if nothing changes before.
    After(Duration),
    /// Something failed that may work later.
    Retry,
}

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE)
}

/// Where changed keys are sent to.
#[derive(Clone, Debug)]
pub struct Sender(mpsc::UnboundedSender<Key>);

impl Sender {
    /// Has the key reconciled soon.
    pub fn send(&self, key: Key) {
        // The queue is only gone when the process ends.
        let _ = self.0.send(key);
    }
}

/// The receiving end of a [`Sender`].
#[derive(Debug)]
pub struct Queue {
    incoming: mpsc::UnboundedReceiver<Key>,
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    delayed: DelayQueue<Key>,
    delays: HashMap<Key, delay_queue::Key>,
    running: HashSet<Key>,
    changed: HashSet<Key>,
    failures: HashMap<Key, u32>,
}

/// A new queue.
pub fn queue() -> (Sender, Queue) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let queue = Queue {
        incoming,
        ready: VecDeque::new(),
        queued: HashSet::new(),
        delayed: DelayQueue::new(),
        delays: HashMap::new(),
        running: HashSet::new(),
        changed: HashSet::new(),
        failures: HashMap::new(),
    };
    (Sender(sender), queue)
}

impl Queue {
    /// Reconciles until `shutdown`, at most `concurrency` keys at a time; then lets running reconciles end.
    pub async fn run<F, R>(mut self, concurrency: usize, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(Key) -> R,
        R: Future<Output = Outcome> + Send + 'static,
    {
        let mut tasks: JoinSet<(Key, Outcome)> = JoinSet::new();
        loop {
            while self.running.len() < concurrency
                && let Some(key) = self.ready.pop_front()
            {
                self.queued.remove(&key);
                self.running.insert(key.clone());
                let work = AssertUnwindSafe(reconcile(key.clone())).catch_unwind();
                tasks.spawn(async move {
                    let outcome = work.await.unwrap_or_else(|_| {
                        tracing::error!(%key, "a reconcile panicked");
                        Outcome::Retry
                    });
                    (key, outcome)
                });
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(Ok((key, outcome))) = tasks.join_next() => self.finish(key, outcome),
                Some(key) = self.incoming.recv() => self.enqueue(key),
                Some(expired) = self.delayed.next() => {
                    let key = expired.into_inner();
                    self.delays.remove(&key);
                    self.enqueue(key);
                }
            }
        }
        while tasks.join_next().await.is_some() {}
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(delay) = self.delays.remove(&key) {
            self.delayed.remove(&delay);
        }
        if self.running.contains(&key) {
            self.changed.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn finish(&mut self, key: Key, outcome: Outcome) {
        self.running.remove(&key);
        let pause = match outcome {
            Outcome::Retry => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                Some(pause(*failures))
            }
            Outcome::Done | Outcome::After(_) => {
                self.failures.remove(&key);
                if let Outcome::After(pause) = outcome {
                    Some(pause)
                } else {
                    None
                }
            }
        };
        if self.changed.remove(&key) {
            self.enqueue(key);
        } else if let Some(pause) = pause {
            let delay = self.delayed.insert(key.clone(), pause);
            self.delays.insert(key, delay);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use tokio::sync::Notify;
    use tokio::time::Instant;

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            namespace: "n".into(),
            name: name.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_retried_ever_later_and_requeues_come_in_time() {
        let (sender, queue) = queue();
        let shutdown = CancellationToken::new();
        let log = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let (log2, stop) = (Arc::clone(&log), shutdown.clone());
        sender.send(key("a"));
        let work = move |_| {
            let (log, stop) = (Arc::clone(&log2), stop.clone());
            async move {
                let mut log = log.lock().unwrap();
                log.push(start.elapsed().as_millis());
                match log.len() {
                    1..=3 => Outcome::Retry,
                    4 => Outcome::After(Duration::from_secs(7)),
                    _ => {
                        stop.cancel();
                        Outcome::Done
                    }
                }
            }
        };
        queue.run(2, shutdown, work).await;
        let log = log.lock().unwrap().clone();
        let gaps: Vec<u128> = log.windows(2).map(|w| w[1] - w[0]).collect();
        for (gap, least) in gaps.iter().zip([50, 100, 200, 7000]) {
            assert!((least..least + 5).contains(gap), "{gaps:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_reconciled_twice_at_a_time_and_no_change_is_lost() {
        let (sender, queue) = queue();
        let shutdown = CancellationToken::new();
        let state = Arc::new(Mutex::new((0, 0)));
        let gate = Arc::new(Notify::new());
        let (state2, gate2) = (Arc::clone(&state), Arc::clone(&gate));
        let task = tokio::spawn(queue.run(4, shutdown.clone(), move |_| {
            let (state, gate) = (Arc::clone(&state2), Arc::clone(&gate2));
            async move {
                {
                    let mut s = state.lock().unwrap();
                    s.0 += 1;
                    assert_eq!(s.0, 1);
                }
                gate.notified().await;
                let mut s = state.lock().unwrap();
                s.0 -= 1;
                s.1 += 1;
                Outcome::Done
            }
        }));
        sender.send(key("a"));
        while state.lock().unwrap().0 == 0 {
            tokio::task::yield_now().await;
        }
        for _ in 0..5 {
            sender.send(key("a"));
        }
        while state.lock().unwrap().1 < 2 {
            gate.notify_one();
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        gate.notify_one();
        task.await.unwrap();
        assert_eq!(state.lock().unwrap().1, 2);
    }

    #[test]
    fn pauses() {
        assert_eq!(pause(1), Duration::from_millis(50));
        assert_eq!(pause(5), Duration::from_millis(800));
        assert_eq!(pause(100), Duration::from_secs(30));
    }
}

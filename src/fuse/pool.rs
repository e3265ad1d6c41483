//! Threads for work that may block long, so that the event loops stay free to answer.
//!
//! Each queued job belongs to a process that waits for its reply, so the queue is bounded by the
//! number of waiting processes.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// An idle thread beyond the first ones ends after this.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

struct Shared {
    name: String,
    queue: Mutex<Queue>,
    wake: Condvar,
    ended: Condvar,
    least: usize,
    most: usize,
}

/// Threads that come and go with the work; dropping the pool finishes the queue and waits for them.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts `least` threads named after `name`; as long as jobs would wait, up to `most`.
    pub fn start(name: &str, least: usize, most: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            ended: Condvar::new(),
            least,
            most,
        });
        let pool = Self { shared };
        for _ in 0..least {
            pool.shared.queue.lock().threads += 1;
            spawn(&pool.shared)?;
        }
        Ok(pool)
    }

    /// Queues a job. It must catch its own panics.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        queue.jobs.push_back(Box::new(job));
        let grow = queue.jobs.len() > queue.idle && queue.threads < self.shared.most;
        queue.threads += usize::from(grow);
        drop(queue);
        self.shared.wake.notify_one();
        // Without the thread the job waits for another one, if there is any.
        if grow && let Err(e) = spawn(&self.shared) {
            log::error!("{}: no further thread: {e}", self.shared.name);
            self.fall_back();
        }
    }

    /// Does here what no thread is left to do.
    fn fall_back(&self) {
        loop {
            let mut queue = self.shared.queue.lock();
            if queue.threads > 0 {
                return;
            }
            let Some(job) = queue.jobs.pop_front() else { return };
            drop(queue);
            job();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        self.shared.wake.notify_all();
        while queue.threads > 0 {
            self.shared.ended.wait(&mut queue);
        }
    }
}

/// Starts a thread that is counted already.
fn spawn(shared: &Arc<Shared>) -> io::Result<()> {
    let theirs = Arc::clone(shared);
    let thread = std::thread::Builder::new().name(shared.name.clone());
    let started = thread.spawn(move || {
        while let Some(job) = next(&theirs) {
            job();
        }
        theirs.ended.notify_all();
    });
    if started.is_err() {
        shared.queue.lock().threads -= 1;
    }
    started.map(drop)
}

/// The next job; none when the thread is to end, which is counted then.
fn next(shared: &Shared) -> Option<Job> {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        if queue.closed {
            queue.threads -= 1;
            return None;
        }
        queue.idle += 1;
        let tired = shared.wake.wait_for(&mut queue, IDLE).timed_out();
        queue.idle -= 1;
        if tired && queue.jobs.is_empty() && queue.threads > shared.least {
            queue.threads -= 1;
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn dropping_the_pool_finishes_every_job() {
        for (least, most) in [(3, 3), (0, 3)] {
            let done = Arc::new(AtomicUsize::new(0));
            let pool = Pool::start("test", least, most).unwrap();
            for _ in 0..100 {
                let done = Arc::clone(&done);
                pool.run(move || {
                    done.fetch_add(1, Ordering::SeqCst);
                });
            }
            drop(pool);
            assert_eq!(done.load(Ordering::SeqCst), 100);
        }
    }

    #[test]
    fn jobs_run_beside_each_other_as_far_as_the_pool_may_grow() {
        let pool = Pool::start("test", 0, 5).unwrap();
        let barrier = Arc::new(std::sync::Barrier::new(6));
        for _ in 0..5 {
            let barrier = Arc::clone(&barrier);
            pool.run(move || {
                barrier.wait();
            });
        }
        barrier.wait();
        assert!(pool.shared.queue.lock().threads <= 5);
    }
}

//! A task that begins on the thread that has it, and goes to the runtime when it is first woken.
//!
//! Handing it over as soon as it has to wait would wake the runtime's thread twice: for the task, and for what it waits for.

use super::Tasks;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use tokio::runtime::Handle;

/// Its waker, which holds it while it waits.
struct Parked {
    runtime: Handle,
    state: Mutex<State>,
}

enum State {
    /// The first thread is at it.
    Polled,
    /// It was woken meanwhile.
    Woken,
    Waits(BoxFuture<'static, ()>),
    /// The runtime has it, or it has ended.
    Gone,
}

impl Tasks {
    /// [`Tasks::spawn_until_stop`] on this runtime, but what goes without waiting is done here, before this returns.
    pub fn start_here(&self, runtime: &Handle, body: impl Future<Output = ()> + Send + 'static) {
        let mut body: BoxFuture<'static, ()> = Box::pin(self.running.track_future(self.until_stop(body)));
        let parked = Arc::new(Parked { runtime: runtime.clone(), state: Mutex::new(State::Polled) });
        let _entered = runtime.enter();
        let waker = Waker::from(Arc::clone(&parked));
        if body.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        let mut state = parked.state.lock().expect("no panic holds this lock");
        match *state {
            State::Woken => {
                *state = State::Gone;
                drop(state);
                drop(runtime.spawn(body));
            }
            _ => *state = State::Waits(body),
        }
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        let body = {
            let mut state = self.state.lock().expect("no panic holds this lock");
            match std::mem::replace(&mut *state, State::Gone) {
                State::Waits(body) => body,
                State::Polled | State::Woken => {
                    *state = State::Woken;
                    return;
                }
                State::Gone => return,
            }
        };
        drop(self.runtime.spawn(body));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::sync::{mpsc, oneshot};

    /// A runtime on another thread, which ends when the sender is dropped.
    fn runtime() -> (Handle, oneshot::Sender<()>, std::thread::JoinHandle<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        (handle, stop, thread)
    }

    #[test]
    fn what_need_not_wait_is_done_before_the_call_returns() {
        let (runtime, _stop, _) = runtime();
        let (sender, done) = std::sync::mpsc::channel();
        Tasks::new().start_here(&runtime, async move { sender.send(std::thread::current().id()).unwrap() });
        assert_eq!(done.try_recv(), Ok(std::thread::current().id()));
    }

    #[test]
    fn what_waits_goes_on_when_it_is_woken() {
        let (runtime, stop, thread) = runtime();
        let (sender, done) = std::sync::mpsc::channel();
        let (to_task, mut inbox) = mpsc::channel::<u32>(8);
        let tasks = Tasks::new();
        let from_here = to_task.clone();
        tasks.start_here(&runtime, async move {
            from_here.try_send(0).unwrap();
            while let Some(number) = inbox.recv().await {
                sender.send((number, std::thread::current().id())).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await; // on the runtime's clock
            }
        });
        to_task.try_send(1).unwrap();
        to_task.try_send(2).unwrap();
        let limit = Duration::from_secs(20);
        let said: Vec<_> = (0..3).map(|_| done.recv_timeout(limit).unwrap()).collect();
        assert_eq!(said.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(said[0].1, std::thread::current().id());
        assert!(said[1..].iter().all(|(_, at)| *at == thread.thread().id()));
        runtime.block_on(async { assert!(tasks.shutdown(limit).await) });
        assert!(to_task.try_send(3).is_err(), "dropped with the group");
        drop(stop);
        thread.join().unwrap();
    }

    #[test]
    fn one_that_is_woken_while_it_is_polled_is_not_forgotten() {
        let (runtime, _stop, _) = runtime();
        let (sender, done) = std::sync::mpsc::channel();
        Tasks::new().start_here(&runtime, async move {
            tokio::task::yield_now().await; // wakes itself, and is pending
            sender.send(()).unwrap();
        });
        done.recv_timeout(Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn one_that_waits_ends_with_its_group() {
        let (runtime, _stop, _) = runtime();
        let tasks = Tasks::new();
        let (held, dropped) = std::sync::mpsc::channel::<()>();
        tasks.start_here(&runtime, async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert!(dropped.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Empty));
        assert!(runtime.block_on(tasks.shutdown(Duration::from_secs(20))), "it is waited for");
        assert!(dropped.try_recv().is_err_and(|error| error == std::sync::mpsc::TryRecvError::Disconnected));
    }

    #[test]
    fn one_that_waits_is_dropped_with_its_runtime() {
        let (runtime, stop, thread) = runtime();
        let (to_task, mut inbox) = mpsc::channel::<u32>(8);
        let weak = to_task.downgrade();
        Tasks::new().start_here(&runtime, async move {
            let _held = to_task;
            tokio::select! {
                _ = inbox.recv() => {}
                () = tokio::time::sleep(Duration::from_secs(3600)) => {}
            }
        });
        assert!(weak.upgrade().is_some());
        drop(stop);
        thread.join().unwrap();
        assert!(weak.upgrade().is_none());
    }
}

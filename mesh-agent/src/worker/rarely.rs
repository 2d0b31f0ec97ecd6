//! A future that is asked only when it has said that there is news.
//!
//! A task is woken without being told for what, so whoever waits for several things asks all of
//! them each time. What is ready once in the life of a flow is not to be asked for each piece of
//! its data.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

pub(crate) struct Rarely<F> {
    future: F,
    news: Arc<News>,
    waker: Waker,
}

/// Asks `future` when it is first polled, and then each time it wakes its task.
pub(crate) fn rarely<F: Future + Unpin>(future: F) -> Rarely<F> {
    let news = Arc::new(News {
        there: AtomicBool::new(true),
        task: AtomicWaker::new(),
    });
    let waker = Waker::from(news.clone());
    Rarely {
        future,
        news,
        waker,
    }
}

struct News {
    there: AtomicBool,
    task: AtomicWaker,
}

impl Wake for News {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.there.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future + Unpin> Future for Rarely<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.news.task.register(cx.waker());
        if !this.news.there.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use futures_util::task::noop_waker;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn it_is_asked_once_and_when_there_is_news() {
        let asked = Cell::new(0);
        let (sender, mut receiver) = oneshot::channel();
        let mut counted = poll_fn(|cx| {
            asked.set(asked.get() + 1);
            receiver.poll_unpin(cx)
        });
        let mut rare = rarely(&mut counted);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        for _ in 0..3 {
            assert!(rare.poll_unpin(&mut cx).is_pending());
        }
        assert_eq!(asked.get(), 1);
        sender.send(7).unwrap();
        assert_eq!(rare.poll_unpin(&mut cx), Poll::Ready(Ok(7)));
        assert_eq!(asked.get(), 2);
    }

    #[tokio::test]
    async fn its_news_wakes_the_task() {
        let (sender, receiver) = oneshot::channel();
        let send = async {
            tokio::task::yield_now().await;
            sender.send(7)
        };
        let (received, sent) = tokio::join!(rarely(receiver), send);
        assert_eq!((received, sent), (Ok(7), Ok(())));
    }
}

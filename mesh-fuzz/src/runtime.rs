//! The runtime that asynchronous code finds around it.

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
}

/// Runs something inside this thread's runtime.
pub(crate) fn inside<T>(run: impl FnOnce(&Runtime) -> T) -> T {
    RUNTIME.with(|runtime| {
        let _inside = runtime.enter();
        run(runtime)
    })
}

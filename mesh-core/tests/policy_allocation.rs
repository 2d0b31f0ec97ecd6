//! Deciding a flow allocates nothing.

mod call;
mod generated;
mod generated_calls;
mod universe;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mesh_core::policy::PodPolicy;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATIONS.get();
    let done = work();
    (ALLOCATIONS.get() - before, done)
}

#[test]
fn deciding_allocates_nothing() {
    // The counter counts.
    assert_eq!(allocations(|| vec![0u8; 16]).0, 1);

    let mut runner = TestRunner::deterministic();
    let sets = (
        generated::policies(60),
        generated_calls::scopes(),
        prop::collection::vec(generated_calls::call(), 100),
    );
    let mut refused = 0;
    for _ in 0..100 {
        let (policies, scopes, calls) = sets.new_tree(&mut runner).unwrap().current();
        let policy = PodPolicy::new(policies, scopes, vec!["10.0.0.2".parse().unwrap()]);
        for call in calls {
            let flow = call.flow();
            let (count, decision) = allocations(|| policy.decide(&flow));
            assert_eq!(count, 0, "{flow:?}");
            refused += u32::from(decision.refused.is_some());
        }
    }
    // Both outcomes were among them.
    assert!((1_000..9_000).contains(&refused), "{refused} of 10,000");
}

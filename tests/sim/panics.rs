//! Records panics of all tasks of a run, including those that the runtime catches.

use std::{cell::RefCell, sync::Once};

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// From here on, panics of this thread are recorded instead of printed.
pub fn forget() {
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if tokio::runtime::Handle::try_current().is_ok() {
                LAST.with(|last| *last.borrow_mut() = Some(info.to_string()));
            } else {
                print(info);
            }
        }));
    });
    take();
}

pub fn take() -> Option<String> {
    LAST.with(|last| last.borrow_mut().take())
}

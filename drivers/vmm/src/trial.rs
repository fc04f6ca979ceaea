//! A machine of five pages, to see whether one runs.
//!
//! ```text
//!   64-bit mode, paging on ─▶ two numbers written by a locked 16-byte exchange, and read back ─▶ halt
//! ```
//!
//! The exchange is what an x86-64 kernel's allocator begins with, and what KVM's own instruction emulator cannot do. A KVM
//! that has no hardware under it and emulates (a nested one that is broken, or made for guests that know of it) gives
//! out machines and processors, runs simple code, and ends exactly there, as a real guest kernel does on it.

use std::{
    io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use kvm_ioctls::Kvm;

/// Hardware takes a millisecond for all of it, two layers of emulation take fifty.
const LIMIT: Duration = Duration::from_secs(10);

/// What a KVM that is there could not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("cannot make {what}: {source}")]
    Make { what: &'static str, source: kvm_ioctls::Error },
    #[error("makes machines and does not run one: a guest of a few instructions {0}")]
    Run(String),
    #[error("cannot be tried: {0}")]
    Thread(#[from] io::Error),
}

/// Makes the machine, runs it to its halt, and lets it go.
pub(crate) fn run(kvm: Kvm) -> Result<(), Broken> {
    let (tell, told) = mpsc::sync_channel(1);
    // Beside: a processor that never stops cannot be asked to. Its thread ends with this process.
    let trial = move || tell.send(attempt(&kvm));
    thread::Builder::new().name("trial".to_owned()).spawn(trial)?;
    told.recv_timeout(LIMIT).unwrap_or_else(|error| {
        Err(Broken::Run(match error {
            RecvTimeoutError::Timeout => format!("did not come to its halt within {LIMIT:?}"),
            RecvTimeoutError::Disconnected => "ended its thread".to_owned(),
        }))
    })
}

/// Elsewhere a machine is only made: what is known to fail at running one is x86.
#[cfg(not(target_arch = "x86_64"))]
fn attempt(kvm: &Kvm) -> Result<(), Broken> {
    let make = |what| move |source| Broken::Make { what, source };
    let machine = kvm.create_vm().map_err(make("a machine"))?;
    machine.create_vcpu(0).map_err(make("a processor")).map(drop)
}

#[cfg(target_arch = "x86_64")]
use x86::attempt;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

    use super::Broken;
    use crate::ffi::{self, Page};

    /// Three levels of tables, each one page, whose first entries lead to the first 2 MiB as they are.
    const TABLES: [u64; 3] = [0x1000 | PRESENT, 0x2000 | PRESENT, PRESENT | LARGE];
    const PRESENT: u64 = 0x3;
    const LARGE: u64 = 0x80;
    /// Then the code, then the page that it writes to.
    const CODE: u64 = 0x3000;
    const CODE_PAGE: usize = 3;
    const PAGES: usize = 5;

    const PROGRAM: &[u8] = &[
        0xbe, 0x00, 0x40, 0x00, 0x00, // mov esi, 0x4000: the last page, all zeroes
        0x31, 0xc0, // xor eax, eax
        0x31, 0xd2, // xor edx, edx
        0xbb, 0x11, 0x00, 0x00, 0x00, // mov ebx, 0x11
        0xb9, 0x22, 0x00, 0x00, 0x00, // mov ecx, 0x22
        0xf0, 0x48, 0x0f, 0xc7, 0x0e, // lock cmpxchg16b [rsi]
        0x48, 0x8b, 0x06, // mov rax, [rsi]
        0x48, 0x8b, 0x56, 0x08, // mov rdx, [rsi + 8]
        0xf4, // hlt
    ];
    /// What is in rax and rdx at the halt.
    const ANSWER: (u64, u64) = (0x11, 0x22);

    /// Protected mode and paging; physical addresses beyond 4 GiB, as 64-bit mode wants it; 64-bit mode, on.
    const CR0: u64 = 0x8000_0011;
    const CR4: u64 = 0x20;
    const EFER: u64 = 0x500;

    pub(super) fn attempt(kvm: &Kvm) -> Result<(), Broken> {
        let make = |what| move |source| Broken::Make { what, source };
        let machine = kvm.create_vm().map_err(make("a machine"))?;
        ffi::give_memory(&machine, memory()).map_err(make("a machine's memory"))?;
        let mut processor = machine.create_vcpu(0).map_err(make("a processor"))?;
        prepare(kvm, &processor).map_err(make("a processor in 64-bit mode"))?;

        // No interrupt controller: the halt comes back here.
        let halted = loop {
            match processor.run() {
                Ok(VcpuExit::Hlt) => break Ok(()),
                Err(error) if error.errno() == INTERRUPTED => {}
                Ok(other) => break Err(format!("{other:?}")),
                Err(error) => break Err(error.to_string()),
            }
        };
        let after = processor.get_regs().map_err(make("a processor's registers"))?;
        match halted {
            Ok(()) if (after.rax, after.rdx) == ANSWER => Ok(()),
            Ok(()) => Err(Broken::Run(format!("halted with {:#x} and {:#x}", after.rax, after.rdx))),
            Err(exit) => Err(Broken::Run(format!("ended with {exit} at {:#x}", after.rip))),
        }
    }

    /// EINTR.
    const INTERRUPTED: i32 = 4;

    fn memory() -> &'static mut [Page] {
        let mut pages: Vec<Page> = (0..PAGES).map(|_| Page::default()).collect();
        for (page, entry) in pages.iter_mut().zip(TABLES) {
            page.0[..8].copy_from_slice(&entry.to_le_bytes());
        }
        pages[CODE_PAGE].0[..PROGRAM.len()].copy_from_slice(PROGRAM);
        pages.leak()
    }

    fn prepare(kvm: &Kvm, processor: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        processor.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
        let mut special = processor.get_sregs()?;
        let data = kvm_segment {
            limit: u32::MAX,
            selector: 16,
            type_: 3,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..kvm_segment::default()
        };
        special.cs = kvm_segment { selector: 8, type_: 11, db: 0, l: 1, ..data };
        for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
            *segment = data;
        }
        (special.cr0, special.cr3, special.cr4, special.efer) = (CR0, 0, CR4, EFER);
        processor.set_sregs(&special)?;
        // Bit 1 of the flags is always set.
        processor.set_regs(&kvm_regs { rip: CODE, rflags: 2, ..kvm_regs::default() })
    }
}

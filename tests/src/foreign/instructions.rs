//! The few instructions that the programs here need (`Documentation/bpf/standardization`).

/// A register.
#[derive(Clone, Copy)]
pub(super) enum R {
    R0 = 0,
    R1 = 1,
    R2 = 2,
    R3 = 3,
    R6 = 6,
    R7 = 7,
    R10 = 10,
}

/// A helper of the kernel.
#[derive(Clone, Copy)]
pub(super) enum Helper {
    MapLookup = 1,
    Redirect = 23,
    SkRelease = 86,
    NetnsCookie = 122,
    SkAssign = 124,
}

/// Code that is being written. A jump goes to the end, where [`Code::finish`] puts the verdict.
#[derive(Default)]
pub(super) struct Code {
    words: Vec<u64>,
    jumps: Vec<usize>,
}

fn word(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(opcode)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate.cast_unsigned()) << 32
}

impl Code {
    pub(super) fn set(mut self, destination: R, value: i32) -> Self {
        self.words.push(word(0xb7, destination as u8, 0, 0, value));
        self
    }

    pub(super) fn copy(mut self, destination: R, source: R) -> Self {
        let code = word(0xbf, destination as u8, source as u8, 0, 0);
        self.words.push(code);
        self
    }

    pub(super) fn add(mut self, destination: R, value: i32) -> Self {
        self.words.push(word(0x07, destination as u8, 0, 0, value));
        self
    }

    /// `destination = *(u32 *)(source + offset)`
    pub(super) fn load(mut self, destination: R, source: R, offset: i16) -> Self {
        let code = word(0x61, destination as u8, source as u8, offset, 0);
        self.words.push(code);
        self
    }

    /// `*(u32 *)(destination + offset) = source`
    pub(super) fn store(mut self, destination: R, offset: i16, source: R) -> Self {
        let code = word(0x63, destination as u8, source as u8, offset, 0);
        self.words.push(code);
        self
    }

    /// The descriptor of a map as the kernel's pointer to it.
    pub(super) fn map(mut self, destination: R, descriptor: i32) -> Self {
        let code = word(0x18, destination as u8, 1, 0, descriptor);
        self.words.extend([code, 0]);
        self
    }

    pub(super) fn call(mut self, helper: Helper) -> Self {
        self.words.push(word(0x85, 0, 0, 0, helper as i32));
        self
    }

    /// Goes to the end unless the register's lower half is that.
    pub(super) fn end_unless(mut self, register: R, is: i32) -> Self {
        self.jumps.push(self.words.len());
        self.words.push(word(0x56, register as u8, 0, 0, is));
        self
    }

    /// Goes to the end if the register is 0.
    pub(super) fn end_if_null(mut self, register: R) -> Self {
        self.jumps.push(self.words.len());
        self.words.push(word(0x15, register as u8, 0, 0, 0));
        self
    }

    /// Ends with what is in `r0`.
    pub(super) fn exit(mut self) -> Vec<u64> {
        self.words.push(word(0x95, 0, 0, 0, 0));
        self.words
    }

    /// Ends with a verdict, also where a jump was taken.
    pub(super) fn finish(mut self, verdict: i32) -> Vec<u64> {
        let end = self.words.len();
        for &at in &self.jumps {
            let offset = u64::try_from(end - at - 1).expect("short code");
            self.words[at] |= offset << 16;
        }
        self.set(R::R0, verdict).exit()
    }
}

//! Detects this CPU's instruction sets.

use std::sync::OnceLock;

/// Compiles a portable function for each instruction set and dispatches on `isa`.
macro_rules! compiled {
    ($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the instructions must be there"))]
        pub(in crate::engine) fn $name(isa: Isa, $($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $result)? { plain($($argument),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
            fn avx512($($argument: $type),*) $(-> $result)? { plain($($argument),*) }
            match isa {
                Isa::Portable => plain($($argument),*),
                // SAFETY: `Isa::available` detected these instructions.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => unsafe { avx512($($argument),*) },
            }
        }
    };
}

/// An instruction set that the kernels are compiled for, in ascending order of capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::engine) enum Isa {
    /// The target's baseline; on 64-bit Arm it includes NEON.
    Portable,
    /// AVX2 with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with byte dot products (VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// As before, with bf16 dot products; no CPU has those without VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The most capable one of this CPU; detected once.
    pub(in crate::engine) fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| *Self::available().last().unwrap_or(&Self::Portable))
    }

    /// All that this CPU supports, in ascending order.
    pub(in crate::engine) fn available() -> Vec<Self> {
        #[cfg_attr(
            not(target_arch = "x86_64"),
            expect(unused_mut, reason = "only x86 has more than one")
        )]
        let mut found = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    found.push(Self::Avx512);
                    if is_x86_feature_detected!("avx512vnni") {
                        found.push(Self::Avx512Vnni);
                        if is_x86_feature_detected!("avx512bf16") {
                            found.push(Self::Avx512Bf16);
                        }
                    }
                }
            }
        }
        found
    }

    /// True when the CPU has dot products of bf16 pairs.
    pub(in crate::engine) fn has_bf16_dot(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Avx512Bf16;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }
}

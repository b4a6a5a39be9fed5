// Instructions that CUDA reaches through inline PTX: what cuda/portable.cuh calls off the device.
#ifndef FORERUN_CUDA_EMULATION_INSTRUCTIONS_H_
#define FORERUN_CUDA_EMULATION_INSTRUCTIONS_H_

#include <cuda_runtime.h>

namespace forerun::emulation {

// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32: d += a b. Each element rounds once for its
// addend and its 16 products: the grouping of k shows in the result, as it does on a GPU.
void MmaM16N8K16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                 const Site& site = Site::current());

// ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16: lane l brings the address of row l % 8 of
// matrix l / 8, 16 bytes in shared memory.
void LoadMatrixX4(unsigned (&result)[4], const void* row, const Site& site = Site::current());
void LoadMatrixX4Transposed(unsigned (&result)[4], const void* row,
                            const Site& site = Site::current());

// cp.async.cg.shared.global of 16 bytes. The copy is made as late as is legal, in the wait for its
// group, and until then the target holds noise: a missing wait shows, and so does a copy into what
// others still read.
void CopyAsync16(void* shared, const void* global);
void CommitCopies();
void WaitForCopies(int num_pending_groups);  // all but the last ones committed

}  // namespace forerun::emulation

#endif  // FORERUN_CUDA_EMULATION_INSTRUCTIONS_H_

import koffi from "koffi";

// koffi runs native calls on stacks of its own. A Vulkan driver compiles shaders inside a call, which overflows the default of
// 128 KiB. The size can be set only before the first library is loaded, so everything imports koffi from here.
const STACK_BYTES = 8 << 20;
koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES });

export default koffi;

import koffi from "koffi";

// Native calls run on stacks of koffi's own. A Vulkan driver compiles shaders inside a call, which overflows the default of
// 128 KiB. This can only be set before the first library is loaded, so everything takes koffi from here.
const STACK_BYTES = 8 << 20;
koffi.config({ ...koffi.config(), sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES });

export default koffi;

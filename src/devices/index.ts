export { type DeviceFit, type FitCandidate, type FitOptions, fitDevice, quantizableDivisors } from "./fit.js";
export { type MemoryPrediction, predictLoss, predictMemory, predictSpeed, type SpeedPrediction } from "./predict.js";
export { DEVICES, type DeviceProfile, deviceProfile, isDevice, type MeasuredRates, THIS_MACHINE } from "./profiles.js";
export { measureThisMachine, profileOf } from "./this-machine.js";

export { whyNotRotated } from "./basis.js";
export { cutAndRefit, type RefittedCut } from "./cut.js";
export { removalCosts } from "./removal-costs.js";

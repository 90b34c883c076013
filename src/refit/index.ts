export { whyNotRotated } from "./basis.js";
export { cutAndRefit, type PreparedCut, prepareCut, type RefitOptions, refitCut } from "./cut.js";
export { removalCosts } from "./removal-costs.js";

import{d as n}from"./chunk-V5KZCUB3.js";function r(o){return n("p",{children:"manager"})}export{r as Manager};
